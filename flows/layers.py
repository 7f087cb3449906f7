"""Plain data laid over one another: a file over its base, a configuration over a framework's convention. Pure."""

from collections.abc import Mapping
from typing import Any


def laid_over(upper: Any, lower: Any) -> Any:
    """`upper` with what it leaves open taken from `lower`: mappings key by key, all else as a whole.

    Two mappings that name different kinds (`type`) have no fields in common, and the upper one stands alone.
    """
    if not isinstance(upper, Mapping) or not isinstance(lower, Mapping):
        return upper
    if "type" in upper and "type" in lower and upper["type"] != lower["type"]:
        return upper
    both = {key: laid_over(upper[key], value) if key in upper else value for key, value in lower.items()}
    return both | {key: value for key, value in upper.items() if key not in lower}


def chosen(fragment: Any, data: Any) -> Any:
    """A convention as it applies to a configuration: of each list, which holds a mapping for each kind, one entry.

    That is the entry of the kind that the configuration names, the first where it names none, and nothing where the
    convention does not know the kind.
    """
    if isinstance(fragment, Mapping):
        inside = data if isinstance(data, Mapping) else {}
        return {key: chosen(value, inside.get(key)) for key, value in fragment.items()}
    if isinstance(fragment, list):
        kind = data.get("type") if isinstance(data, Mapping) else None
        return next((entry for entry in fragment if kind in (None, entry["type"])), {})
    return fragment
