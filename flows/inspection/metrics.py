"""The figures of an iteration, as the manifests of its stages say."""

from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.runs.history import History
from flows.runs.staleness import stages_of

METRICS = {
    "reward_mean": ("score", "reward_mean"),
    "heldout_success": ("evaluate", "heldout_success"),
    "kl": ("update", "kl"),
    "entropy": ("update", "entropy"),
    "mean_length": ("sample", "mean_length"),
    "truncated": ("sample", "truncated"),
    "constant_group_rows": ("advantage", "constant_group_rows"),
    "clip_fraction_low": ("update", "clip_fraction_low"),
    "clip_fraction_high": ("update", "clip_fraction_high"),
    "gradient_norm": ("update", "gradient_norm"),
    "learning_rate": ("update", "learning_rate"),
    "ratio_min": ("update", "ratio_min"),
    "ratio_max": ("update", "ratio_max"),
    "effective_sample_size": ("update", "effective_sample_size"),
    "mismatch_max": ("update", "mismatch_max"),
    "fidelity_max": ("sample", "fidelity_max"),
    "mismatch_kl": ("update", "mismatch_kl"),
    "value_loss": ("update", "value_loss"),
    "explained_variance": ("update", "explained_variance"),
}
SHOWN = (
    ("reward_mean", "reward"),
    ("heldout_success", "held-out"),
    ("kl", "KL"),
    ("entropy", "entropy"),
    ("mean_length", "length"),
)
"""The figures that people are shown by iteration: name and title."""


def iteration_metrics(history: History, k: int) -> dict[str, float | None]:
    """The figures of iteration `k`; None where the stage has not been done or does not give the figure."""
    out: dict[str, float | None] = {}
    for name, (stage, metric) in METRICS.items():
        manifest = history.manifest(k, stage)
        out[name] = manifest.metrics.get(metric) if manifest else None
    return out


def seconds(history: History, config: RunConfig, k: int) -> dict[str, float]:
    """Seconds that each stage of iteration `k` took, in the order of the work."""
    found = [history.manifest(k, place_of(stage)) for stage in stages_of(history, config, k)]
    return {manifest.stage: manifest.seconds for manifest in found if manifest}
