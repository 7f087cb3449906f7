"""Judges completions: rollouts → rewards, and what frozen judges say token by token."""
