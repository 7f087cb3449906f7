"""Curves over iterations as PNG pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, DPI = 4.6, 2.5, 100
"""Inches of a panel, and dots an inch."""
COLOURS = 64
"""Of the palette; lines and their soft edges need no more, and the file gets a third as large."""
MARKED = 40
"""Up to so many points are marked one by one."""


@dataclass(frozen=True)
class Curve:
    """Values by iteration, those that are there."""

    label: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    curves: Sequence[Curve]
    limits: tuple[float, float] | None = None
    """The least and greatest value shown; None lets the curves say."""
    mark: int | None = None
    """An iteration to mark by a dotted line."""


def draw(panels: Sequence[Panel], columns: int = 2) -> bytes | None:
    """A PNG of all panels that hold a point; None where none does. A legend is drawn where there are several curves."""
    filled = [panel for panel in panels if any(curve.points for curve in panel.curves)]
    if not filled:
        return None
    from matplotlib.figure import Figure  # takes most of a second, which only those pay who draw
    from matplotlib.ticker import MaxNLocator

    columns = min(columns, len(filled))
    rows = -(-len(filled) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), dpi=DPI, layout="constrained")
    for place, panel in enumerate(filled, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for curve in panel.curves:
            xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
            marker = "." if len(xs) <= MARKED else None
            axes.plot(xs, ys, label=curve.label, marker=marker, linewidth=1.3)
        if panel.mark is not None:
            axes.axvline(panel.mark, color="grey", linestyle=":", linewidth=1.2)
        axes.set_title(panel.title, fontsize=10)
        axes.set_ylabel(panel.unit, fontsize=9)
        axes.set_xlabel("iteration", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        if len(panel.curves) > 1:
            axes.legend(fontsize=8)
    return _png(figure)


def _png(figure: object) -> bytes:
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png")  # type: ignore[attr-defined]
    with Image.open(whole) as image:
        image.convert("RGB").quantize(COLOURS).save(small, format="png", optimize=True)
    return small.getvalue()
