"""Rewards → advantages. NumPy and polars only: no torch, no GPU."""
