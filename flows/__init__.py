"""Holds the flows, a file each, and in packages what they are made of: Prefect and the command line around the stages.

No arithmetic here. Imports go downward only: `config`, then `runs`, then `inspection` and `execution` (which never
import each other), then `orchestration`, then the flows, then `serving`, then `commands`, then `cli`.
"""
