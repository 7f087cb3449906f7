"""Tokens a second of the transformers engine beside `model.generate` as TRL's trainer calls it, work B."""

from tests.benchmarks import ours, trl
from tests.benchmarks.fast import Part, Row
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Side, in_turns, middle
from tests.benchmarks.works import WORKS, make

BAR = 2.0


def measure(settings: Settings) -> Part:
    """Tokens a second, and memory."""
    work = WORKS["b"]
    make(work)
    with (
        Side(ours.sampling, settings.threads, settings.log("ours-sampling"), work="b") as mine,
        Side(trl.sampling, settings.threads, settings.log("trl-sampling"), work="b") as theirs,
    ):
        found = in_turns({"ours": mine, "TRL": theirs}, settings.runs, settings.say)
    wanted = work.rows * work.tokens
    assert all(run["tokens"] == wanted for runs in found.values() for run in runs), "a completion was cut"
    one, other = (wanted / middle(runs) for runs in found.values())
    ratio, peaks = one / other, [middle(runs, "peak") for runs in found.values()]
    told = f"sampling, B, {settings.told()}"
    rows = [
        Row(told, f"{one:.0f} tokens/s", f"{other:.0f} tokens/s", ratio, f"≥ {BAR:g}", ratio >= BAR),
        Row("… its peak memory", *(f"{peak:.0f} MiB" for peak in peaks), peaks[0] / peaks[1]),
    ]
    return Part(rows, f"B, {settings.told_runs()}.")
