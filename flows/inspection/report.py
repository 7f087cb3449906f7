"""A run as one page of Markdown: figures, curves, best and worst completions, what is stale and why, warnings."""

import base64
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.inspection.metrics import SHOWN, iteration_metrics, seconds
from flows.inspection.plots import Curve, Panel, draw
from flows.runs.history import History
from flows.runs.staleness import examine, stages_of, stale
from stages.contract.columns import KEY
from stages.contract.paths import RunPaths
from stages.score.by_task import by_task

SHORT = {"advantage": "adv.", "evaluate": "eval."}
"""Stages whose names are too long for the head of a column of figures."""
LISTED = 12
"""Iterations in the page's table."""
LINES = 6
"""Stale stages, and warnings, that are told."""
COMPLETIONS = 3
"""Best, and worst ones."""
LONGEST = 400
"""Characters of a prompt or completion."""

Row = dict[str, int | float | None]


def row(history: History, config: RunConfig, k: int) -> Row:
    """The figures of iteration `k` as a row of a table, seconds of its stages at the end."""
    metrics, took = iteration_metrics(history, k), seconds(history, config, k)
    figures = {title: _rounded(metrics[name], 4) for name, title in SHOWN}
    return {
        "iteration": k,
        **figures,
        **{f"{SHORT.get(stage, stage)} s": _rounded(value, 2) for stage, value in took.items()},
    }


def report(history: History, config: RunConfig) -> str:
    """The page of a run."""
    last = history.last()
    metrics = {k: iteration_metrics(history, k) for k in range(last + 1)}
    states = [state for state in examine(history, config, last) if state.manifest is not None]
    rows = [row(history, config, k) for k in range(max(0, last - LISTED + 1), last + 1)]
    parts = [f"# {history.paths.root.name} · iteration {last}", _headline(history, config, last)]
    parts += _listed("Stale", "`grpo train` makes it again.", stale(states))
    parts += _listed("Warnings", "", warnings(history, config, last))
    picture = draw(panels(metrics))
    if picture is not None:
        parts.append(f"![figures by iteration](data:image/png;base64,{base64.b64encode(picture).decode()})")
    parts += ["## Iterations", markdown_table(rows)]
    judged = [s.iteration for s in states if s.stage == "score" and s.status == "current"]
    if judged and not (history.pruned(judged[-1], "sample") or history.pruned(judged[-1], "score")):
        try:
            parts += [*_tasks(history.paths, judged[-1]), *_samples(history.paths, judged[-1])]
        except (OSError, pl.exceptions.PolarsError):
            name = history.paths.root.name
            parts.append(f"The completions of iteration {judged[-1]} cannot be read; `grpo verify {name}` says more.")
    return "\n\n".join(part for part in parts if part) + "\n"


def panels(metrics: dict[int, dict[str, float | None]]) -> list[Panel]:
    """What is drawn, from the figures of each iteration."""

    def curve(name: str, label: str) -> Curve:
        return Curve(label, [(k, value) for k, found in metrics.items() if (value := found[name]) is not None])

    return [
        Panel("Reward of the drawn completions", "mean reward", [curve("reward_mean", "reward")]),
        Panel("Held-out success", "share of completions", [curve("heldout_success", "success")], (-0.02, 1.02)),
        Panel("KL from the reference", "nats a token", [curve("kl", "KL")]),
        Panel("Entropy", "nats a token", [curve("entropy", "entropy")]),
        Panel("Length of completions", "tokens", [curve("mean_length", "length")]),
        Panel(
            "Clipped ratios",
            "share of tokens",
            [curve("clip_fraction_low", "below"), curve("clip_fraction_high", "above")],
        ),
    ]


def warnings(history: History, config: RunConfig, last: int) -> list[str]:
    """What the manifests of the last iterations warn of, the newest first."""
    out = []
    for k in range(last, max(-1, last - LISTED), -1):
        for stage in stages_of(history, config, k):
            manifest = history.manifest(k, place_of(stage))
            told = list(manifest.notes.get("warnings", [])) if manifest else []
            if manifest and stage == "score" and (failed := manifest.metrics.get("failed")):
                told.append(f"{failed:.0f} completions have no reward")
            out += [f"{stage} of iteration {k}: {warning}" for warning in told]
    return out


def markdown_table(rows: Sequence[Row], timed: bool = True) -> str:
    """A Markdown table, the seconds of all stages in one column or left out; what a row does not have is a dash."""
    rows = [_summed(row, timed) for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---:"] * len(columns), *([_cell(name, row.get(name)) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def inline(text: str) -> str:
    """A text as one line of Markdown that means nothing but itself: no HTML, no links, no emphasis."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(visible(text).split()))


def fenced(text: str) -> str:
    """A text as a code block that it cannot end: the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def visible(text: str) -> str:
    """A text with its invisible characters (but for newlines and tabs) spelt out, and cut where it is long."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} … {len(text) - LONGEST} more characters"
    return "".join(
        character if character in "\n\t" or unicodedata.category(character)[0] != "C" else f"\\u{{{ord(character):x}}}"
        for character in cut
    )


def as_html(page: str, title: str) -> str:
    """A page of Markdown as an HTML file that needs nothing beside it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(page)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n{_STYLE}\n{body}'


_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: .5rem .8rem; white-space: pre-wrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } td, th { padding: .15rem .6rem; }
tr { border-bottom: 1px solid #ddd; }
</style>"""


def _headline(history: History, config: RunConfig, last: int) -> str:
    metrics = iteration_metrics(history, last)
    told = [f"{title} {value:.4f}" for name, title in SHOWN if (value := metrics[name]) is not None]
    done = [
        manifest for stage in stages_of(history, config, last) if (manifest := history.manifest(last, place_of(stage)))
    ]
    when = f"{max(manifest.started for manifest in done)[:16].replace('T', ' ')} UTC" if done else ""
    return " · ".join([*told, when]).rstrip(" ·")


def _listed(title: str, remedy: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"- … and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return [f"## {title}", remedy, "\n".join([*(f"- {inline(line)}" for line in lines[:LINES]), *more])]


def _tasks(paths: RunPaths, k: int) -> Iterator[str]:
    """What each task's completions earned, where there are several tasks."""
    rollouts = pl.read_parquet(paths.stage(k, "sample") / "rollouts.parquet", columns=[*KEY, "task"])
    scores = pl.read_parquet(paths.stage(k, "score") / "scores.parquet")
    joined = scores.join(rollouts, on=KEY, how="inner", maintain_order="left")
    rows = by_task(joined["task"], joined.drop("task"))
    if len(rows) < 2:
        return
    yield f"## Tasks of iteration {k}"
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)]]
    lines += [[inline(row["task"]), *(_cell(name, row[name]) for name in list(row)[1:])] for row in rows]
    yield "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _samples(paths: RunPaths, k: int) -> Iterator[str]:
    """The best and worst completions of an iteration, of as many prompts."""
    scores = pl.read_parquet(paths.stage(k, "score") / "scores.parquet", columns=[*KEY, "reward"]).drop_nulls("reward")
    rollouts = pl.scan_parquet(paths.stage(k, "sample") / "rollouts.parquet")
    for title, descending in (("Best", True), ("Worst", False)):
        ranked = scores.sort("reward", descending=descending, maintain_order=True)
        chosen = ranked.unique("prompt_id", keep="first", maintain_order=True).head(COMPLETIONS)
        wanted = ("prompt", "completion", "answer", "finish_reason")
        found = (
            rollouts.select(*KEY, *wanted).filter(pl.col("prompt_id").is_in(chosen["prompt_id"].to_list())).collect()
        )
        yield f"## {title} completions of iteration {k}"
        for entry in chosen.join(found, on=KEY, how="inner", maintain_order="left").iter_rows(named=True):
            yield f"Reward {entry['reward']:.4f}, ended by {inline(entry['finish_reason'])}:"
            yield fenced("\n".join(_lines(entry)))


def _lines(entry: dict[str, Any]) -> Iterator[str]:
    for name in ("prompt", "completion", "answer"):
        if entry[name] is not None:
            yield f"{name:<10}  " + visible(entry[name]).replace("\n", "\n" + " " * 12)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def total_seconds(row: Row) -> float:
    """Seconds of a row's stages."""
    return sum(value for name, value in row.items() if name.endswith(" s") and value is not None)


def _summed(row: Row, timed: bool) -> Row:
    figures = {name: value for name, value in row.items() if not name.endswith(" s")}
    return figures | {"seconds": total_seconds(row) or None} if timed else figures


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.1f}" if column == "seconds" else f"{value:.4f}"
