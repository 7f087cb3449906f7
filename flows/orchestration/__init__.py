"""Holds what the flows share and what knows Prefect: the one `@task`, the approval gate, what the UI shows of a run.

May import `flows.execution`, `flows.inspection`, `flows.runs`, `flows.config` and `stages`. The flows themselves stand
one level up, a file each.
"""
