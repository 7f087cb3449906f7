"""In what two configurations differ. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from flows.config.schema import RunConfig
from stages.contract.config import deciding


def differing(one: RunConfig, other: RunConfig) -> dict[str, tuple[str, str]]:
    """What differs between two configurations and changes what comes out: dotted names and both values, as JSON."""
    ignored = {"iterations", "hardware", "run"}
    left, right = (
        dict(_leaves({name: part for name, part in deciding(config).items() if name not in ignored}))
        for config in (one, other)
    )
    pairs = {
        name: (left.get(name, "nothing"), right.get(name, "nothing")) for name in sorted(left.keys() | right.keys())
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """The same, a line each."""
    return [f"{name}: {there} there, {here} here" for name, (there, here) in differing(one, other).items()]


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each value that has no parts, as JSON, with its dotted name."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if not data or not entries:
        yield prefix.removesuffix("."), json.dumps(data)
    for key, value in entries:
        yield from _leaves(value, f"{prefix}{key}.")
