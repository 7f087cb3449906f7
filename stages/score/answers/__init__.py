"""Reads the answer out of a completion and compares it with the one that is wanted.

A file for each kind of answer: text, LaTeX, arithmetic, programs with unit tests. Nothing here runs what a model wrote.
"""
