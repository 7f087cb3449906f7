"""Shows runs and configurations, and writes nothing into a run.

Status, completions and SQL, the report and its plots, comparisons, lineage, the check of all files, and what the
terminal shows. May import `flows.runs`, `flows.config` and `stages`; never `flows.execution`.
"""
