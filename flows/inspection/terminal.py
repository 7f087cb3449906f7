"""What the terminal shows while a run trains: a bar for the stage at work, a line for each iteration."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.config.stages import place_of
from flows.inspection.metrics import SHOWN, iteration_metrics, seconds
from flows.runs.access import open_run
from flows.runs.history import History
from stages.contract.paths import RunPaths


class Display:
    """A `Watcher` that writes to the terminal; without a terminal only the lines are written."""

    def __init__(self, console: Console, iterations: int) -> None:
        self._console = console
        self._iterations = iterations
        self._begun = time.monotonic()
        self._header = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def working(self, stage: str, k: int, done: int, total: int) -> None:
        """Moves the bar; a stage that begins gets a new one, whose end is not known yet."""
        if total == 0:
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(f"iteration {k}/{self._iterations} · {stage}", total=None)
        else:
            self._bar.update(self._task, completed=done, total=total)

    def stage_done(self, paths: RunPaths, stage: str, k: int, told: str) -> None:
        """Nothing: the iteration's line will have its seconds."""

    def iteration_done(self, paths: RunPaths, k: int) -> None:
        """Writes an iteration's line."""
        _, config = open_run(paths.root.parent, paths.root.name)
        history = History(paths)
        metrics, took = iteration_metrics(history, k), seconds(history, config, k)
        if not self._header:
            names = "".join(f"{title:>10}" for _, title in SHOWN)
            self._print(f"[bold]iteration{names}   seconds[/bold]")
            self._header = True
        figures = "".join(f"{_figure(metrics[name]):>10}" for name, _ in SHOWN)
        times = " ".join(f"{stage} {value:.1f}" for stage, value in took.items())
        self._print(f"{k:>9}{figures}   {times}")
        for stage in took:
            manifest = history.manifest(k, place_of(stage))
            for warning in manifest.notes.get("warnings", []) if manifest else []:
                self._print(f"{'':>9}[yellow]{stage}: {escape(warning)}[/yellow]")

    def say(self, text: str) -> None:
        """Writes a line."""
        self._print(text)

    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return time.monotonic() - self._begun

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
