"""Torch code that several rooms share: loading and saving policies, log-probabilities."""
