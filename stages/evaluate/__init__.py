"""Measures a policy on held-out prompts."""
