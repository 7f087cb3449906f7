"""Holds the subcommands of `grpo`, a file for each concern.

Each imports what is slow only when it runs, so that `grpo --help` answers at once. May import all of `flows` but
`flows.cli`; knows Prefect only through `flows.serving` and the flows.
"""
