"""Metrics that know how they add up over micro-batches, shards and steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Collects figures of parts of a whole; `result` gives those of the whole."""

    _means: dict[str, tuple[float, float]] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _maxima: dict[str, float] = field(default_factory=dict)

    def mean(self, name: str, total: float, count: float) -> None:
        """Adds a part of `count` items whose values sum to `total`."""
        old_total, old_count = self._means.get(name, (0.0, 0.0))
        self._means[name] = (old_total + total, old_count + count)

    def sum(self, name: str, value: float) -> None:
        """Adds `value` to a sum."""
        self._sums[name] = self._sums.get(name, 0.0) + value

    def max(self, name: str, value: float) -> None:
        """Keeps the greatest value; a NaN stays."""
        old = self._maxima.get(name, -math.inf)
        self._maxima[name] = value if value > old or math.isnan(value) else old

    def min(self, name: str, value: float) -> None:
        """Keeps the least value; kept as a maximum of its negative."""
        self.max(f"-{name}", -value)

    def result(self) -> dict[str, float]:
        """The figures of the whole; a mean over nothing is left out."""
        out = {name: total / count for name, (total, count) in self._means.items() if count}
        out |= self._sums
        for name, value in self._maxima.items():
            out[name.removeprefix("-")] = -value if name.startswith("-") else value
        return out


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where there is none."""
    kept = [value for value in values if value is not None]
    return math.fsum(kept) / len(kept) if kept else None
