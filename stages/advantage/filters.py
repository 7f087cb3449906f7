"""Which rows are not trained on, and why. Pure."""

import numpy as np
from numpy.typing import NDArray

from stages.advantage.groups import Floats, Groups

FAILED, ALONE, CONSTANT, EMPTY = "no reward", "group of one", "constant group", "empty completion"


def reasons(rewards_N: Floats, groups: Groups, length_N: NDArray[np.int64]) -> list[str | None]:
    """For each row why it is left out of training, the first reason that applies; None for a row that is trained on."""
    conditions = [length_N == 0, np.isnan(rewards_N), groups.count_N < 2, groups.constant_N]
    names = np.select(conditions, [EMPTY, FAILED, ALONE, CONSTANT], default="")
    return [str(name) or None for name in names]
