"""Plain data laid over one another: a file over its base, both over a convention, single fields over all. Pure."""

from collections.abc import Mapping
from typing import Any

from stages.contract.errors import ConfigError


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


class Dotted(dict[str, Any]):
    """Dotted names and their values: how configuration fields are set one by one."""


def apply_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration with dotted names set; numbers in a name count the entries of a list from 0.

    The number after the last entry's adds one. Another `type` takes the place of all that was said for the former one;
    it is set before other names.
    """
    out: Any = _copy(data)
    for name, value in sorted(overrides.items(), key=lambda entry: not entry[0].endswith(".type")):
        *path, last = name.split(".")
        at = out
        for key in path:
            if isinstance(at, dict) and at.get(key) is None:
                at[key] = {}
            at = _child(at, key, name)
        if isinstance(at, list):
            _child(at, last, name)  # makes room, or refuses
            at[int(last)] = value
        elif isinstance(at, dict):
            if last == "type" and at.get("type") not in (None, value):
                at.clear()
            at[last] = value
        else:
            raise ConfigError(f"{name}: {'.'.join(path)} is {at!r}, which has no parts")
    result: dict[str, Any] = out
    return result


def without_hardware(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide an output: those of the machine say only where it is made."""
    return {name: value for name, value in overrides.items() if not name.startswith("hardware.")}


def _copy(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data


def _child(at: Any, key: str, name: str) -> Any:
    if isinstance(at, list):
        if not key.isdecimal() or int(key) > len(at):
            raise ConfigError(
                f"{name}: {key!r} is not a place in a list of {len(at)}, counted from 0; {len(at)} adds an entry"
            )
        if int(key) == len(at):
            at.append({})
        return at[int(key)]
    if isinstance(at, dict):
        return at[key]
    raise ConfigError(f"{name}: {at!r} before {key!r} has no parts")
