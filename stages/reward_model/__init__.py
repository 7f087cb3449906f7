"""Trains a reward model from preferences: pairs of a chosen and a rejected answer → one number an answer."""
