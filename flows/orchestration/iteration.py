"""Makes one iteration of a run, stage by stage."""

from typing import cast

from flows.config.schema import RunConfig
from flows.config.stages import StageName
from flows.orchestration.approval_gate import pass_gate
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.history import History
from flows.runs.retention import retain
from flows.runs.staleness import stages_of, state_of
from stages.contract.paths import RunPaths


def train_iteration(paths: RunPaths, config: RunConfig, k: int) -> None:
    """Makes what is not current of iteration `k`; a gate is asked before an update that has to be made.

    Where the configuration says what is kept, other weights of the iterations before are removed once the sampling is
    over, in which the optimizer state was written; those of the last one are the caller's, who holds the run's lock.
    """
    for stage in stages_of(History(paths), config, k):
        make(paths, config, k, cast(StageName, stage))
        if stage == "sample":
            retain(paths, config, k - 1, observers.say)
    observers.iteration_done(paths, k)


def make(paths: RunPaths, config: RunConfig, k: int, stage: StageName) -> None:
    """Makes a stage of iteration `k`, if it is not current; a gate is asked before an update."""
    changes = None
    if stage == "update" and state_of(History(paths), config, k, stage).status != "current":
        changes = pass_gate(paths, config, "before_update", k) or None
    hardware = config.hardware.model_dump()
    run_stage(str(paths.root), stage, k, overrides=changes, hardware=hardware, return_state=True).result()
