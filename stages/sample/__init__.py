"""Draws completions: prompts and a policy → rollouts."""
