"""Keeps the engine of this process warm from stage to stage."""

from flows.config.schema import RunConfig
from stages.contract.machine import Machine
from stages.contract.workspace import Job
from stages.sample.config import SampleConfig, TransformersEngine
from stages.sample.engine import Engine

_warm: dict[tuple[str, Machine, int | None], Engine] = {}


def warm_engine(config: RunConfig, job: Job) -> Engine:
    """The engine of this process. It stays warm, and holds the digest of the policy that it has loaded."""
    rank = config.update.lora.rank if config.update.lora else None
    key = (config.sample.model_dump_json(exclude={"weights", "curriculum"}), job.machine, rank)
    if key not in _warm:
        for engine in _warm.values():
            engine.close()
        _warm.clear()
        _warm[key] = _new_engine(config.sample, job.machine, rank)
    return _warm[key]


def _new_engine(config: SampleConfig, machine: Machine, adapter_rank: int | None) -> Engine:
    if isinstance(config.engine, TransformersEngine):
        from stages.sample.transformers_engine import TransformersSampler

        return TransformersSampler(config.engine.batch_size, machine.device)
    from stages.sample.vllm_engine import VllmSampler

    return VllmSampler(config, machine, adapter_rank)
