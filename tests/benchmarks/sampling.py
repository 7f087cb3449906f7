"""Tokens a second of the transformers engine beside `model.generate` as TRL's trainer calls it, work B."""

from tests.benchmarks import ours, trl
from tests.benchmarks.fast import Part, Row
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Side, in_turns, middle
from tests.benchmarks.works import WORKS, make

BAR = 2.0


def measure(settings: Settings) -> Part:
    """A row for each number of threads."""
    work = WORKS["b"]
    make(work)
    rows = []
    for threads in settings.threads:
        with (
            Side(ours.sampling, threads, settings.log("ours-sampling"), work="b") as mine,
            Side(trl.sampling, threads, settings.log("trl-sampling"), work="b") as theirs,
        ):
            found = in_turns({"ours": mine, "TRL": theirs}, settings.runs, settings.say)
        wanted = work.rows * work.tokens
        assert all(run["tokens"] == wanted for runs in found.values() for run in runs), "a completion was cut"
        one, other = (wanted / middle(found[name]) for name in ("ours", "TRL"))
        name = f"sampling, B, {settings.told(threads)}"
        rows.append(
            Row(name, f"{one:.0f} tokens/s", f"{other:.0f} tokens/s", one / other, f"≥ {BAR:g}", one / other >= BAR)
        )
        peaks = [middle(found[name], "peak") for name in ("ours", "TRL")]
        rows.append(
            Row(
                f"… its peak memory, {settings.told(threads)}",
                *(f"{peak:.0f} MiB" for peak in peaks),
                peaks[0] / peaks[1],
            )
        )
    return Part(rows, f"B, {settings.told_runs()}.")
