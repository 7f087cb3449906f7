"""Seeds derived from names, so that no stage's randomness depends on what ran before it."""

from blake3 import blake3


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) for a tuple of names, e.g. `derive(seed, "sample", iteration, prompt_id, sample)`.

    Parts are tagged with their type and length, so `("a", "bc")` and `("ab", "c")`, `1` and `"1"` differ.
    """
    text = "".join(f"{type(part).__name__}:{len(str(part))}:{part};" for part in parts)
    return int.from_bytes(blake3(text.encode()).digest(8), "big") >> 1
