"""Reads a configuration from YAML, over its base and convention, and writes it. The only reader of YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.config.messages import explain
from flows.config.overrides import Dotted, apply_overrides, chosen, laid_over
from flows.config.schema import RunConfig
from stages.contract.errors import ConfigError

CONVENTIONS = Path(__file__).parent / "conventions"

# libyaml's loader reads a run.yaml in one millisecond, Python's in fifteen, and each stage of each iteration reads it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice, of which YAML's own would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the class."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping is wanted, this is {type(data).__name__}")
    return data


def parse_overrides(settings: list[str]) -> Dotted:
    """`["update.epochs=2"]` as `{"update.epochs": 2}`; values are YAML."""
    overrides = Dotted()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "" in name.split("."):
            raise ConfigError(f"--set {setting}: NAME=VALUE is wanted, e.g. update.epochs=2")
        try:
            overrides[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {setting}: the value is not YAML: {' '.join(str(error).split())}") from error
    return overrides


def make_config(data: Mapping[str, Any], where: str) -> RunConfig:
    """The configuration of plain data.

    Raises:
        ConfigError: names every wrong field, the value seen and what is wanted.
    """
    try:
        return RunConfig.model_validate(_with_convention(data))
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in explain(error, RunConfig))
        raise ConfigError(f"{where}: the configuration cannot be used:\n{problems}") from error


def with_settings(config: RunConfig, overrides: Mapping[str, Any], where: str) -> RunConfig:
    """A configuration with some fields set by their dotted names.

    Raises:
        ConfigError: a field or value that cannot be used.
    """
    return make_config(apply_overrides(config.model_dump(mode="json"), overrides), where)


def _with_convention(data: Mapping[str, Any]) -> Mapping[str, Any]:
    path = CONVENTIONS / f"{data.get('convention')}.yaml"
    if not path.is_file():
        return data  # none is named, or one that does not exist, of which the validation tells
    result: dict[str, Any] = laid_over(data, chosen(read_yaml(path), data))
    return result


def read_config(path: Path, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration in a file, laid over the file that its key `base` names (counted from its own folder), if any.

    Raises:
        ConfigError: the configuration cannot be used, or the base names a base of its own.
    """
    data = read_yaml(path)
    if (base := data.pop("base", None)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base is {base!r}; the name of a YAML file is wanted")
        lower = read_yaml(path.parent / base)
        if "base" in lower:
            raise ConfigError(f"{path}: its base {base} has a base itself; name {lower['base']!r} or say all there")
        data = laid_over(data, lower)
    return make_config(apply_overrides(data, overrides), str(path))


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_config_file(path: Path) -> RunConfig:
    """A frozen configuration of a run."""
    return make_config(read_yaml(path), str(path))
