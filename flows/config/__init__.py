"""Holds the configuration of a run: its schema, reading it from YAML, and what is told of it.

Also overrides, the forms of the UI, the reference of the fields, the registry of stages, and the check of what a
configuration names outside itself. May import `stages`, and nothing else of `flows`. Needs no torch.
"""
