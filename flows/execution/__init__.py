"""Runs stages without Prefect: binds the configuration of a run to the function of a stage.

Also the warm engines, a stage done again in a scratch place, and stored completions scored with other rewards. May
import `flows.runs`, `flows.config` and `stages`; never `flows.inspection`.
"""
