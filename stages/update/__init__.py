"""Trains: rollouts, scores, advantages and policy k-1 → policy k."""
