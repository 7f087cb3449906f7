"""Tells in the morning what came of a night."""

from flows.config.schema import RunConfig
from flows.inspection.report import inline, markdown_table, report, row
from flows.runs.history import History
from flows.runs.nights import Night
from flows.runs.promotion import promoted
from flows.runs.requirements import missing_for
from stages.contract.paths import RunPaths


def headline(night: Night) -> str:
    """What came of a night, in few words."""
    if night.last == night.before and not night.promoted:
        return f"no iteration trained after iteration {night.last}"
    return f"iteration {night.last} {'promoted' if night.promoted else 'held back'}"


def morning(paths: RunPaths, config: RunConfig, night: Night) -> str:
    """The report of a night: what came of it and why, then the run's page."""
    history, name, trained = History(paths), paths.root.name, night.last - night.before
    took = (night.ended or night.began) - night.began
    lines = [
        f"# {name} · night of {night.date}",
        f"**{inline(headline(night).capitalize())}**: {inline(night.why)}.",
        f"- {trained} iterations were trained ({night.before + 1} to {night.last})"
        if trained > 0
        else "- no iteration was trained",
        f"- it took {took.total_seconds() / 3600:.2f} h and ended because {inline(night.stopped)}",
    ]
    if night.starts > 1:
        lines.append(f"- it was begun {night.starts} times: in between it was killed, failed, or waited at a gate")
    lines += [f"- {count} {inline(what)}" for what, count in night.prompts.items()]
    lines += [f"- {inline(told)}" for told in night.told]
    if not night.promoted and trained > 0:
        kept = promoted(paths) or 0
        gone = missing_for(history, history.config(kept + 1, config), kept + 1)
        how = f"to train on from it: `grpo fork {name} --at {kept} --name …`"
        how = f"to train on from it, {gone[0]} is missing, which the retention rule `keep` removed" if gone else how
        lines.append(f"- the promoted policy is still that of iteration {kept}; {how}")
    rows = [row(history, config, k) for k in range(night.before, night.last + 1)]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:], "", markdown_table(rows), "", report(history, config)])
