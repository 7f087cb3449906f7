"""pass@k and majority votes. Pure."""

from collections import Counter
from collections.abc import Sequence
from math import comb


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the unbiased estimate of the chance that one of k samples succeeds.

    Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374), equation 1.

    Args:
        samples: n, the samples that were drawn.
        successes: c, those that succeeded.
        k: at most n.
    """
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {successes} successes in {samples} samples")
    return 1.0 - comb(samples - successes, k) / comb(samples, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given most often, the earliest of those that tie; None where nobody answered."""
    counted = Counter(answer for answer in answers if answer is not None)
    return counted.most_common(1)[0][0] if counted else None
