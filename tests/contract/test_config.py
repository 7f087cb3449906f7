"""Which configuration decides what comes out, and which only says how the work is done."""

import pytest
from pydantic import Field

from stages.contract.config import Config, config_digest, deciding, operational
from stages.sample.config import SampleConfig, VllmEngine


class Inner(Config):
    """A part."""

    size: int = 1
    """How large."""
    patience: float = operational(5.0, gt=0)
    """How long."""


class Other(Config):
    """Another part."""

    colour: str = "red"
    """Which."""


class Outer(Config):
    """A whole."""

    part: Inner | Other = Inner()
    """One part."""
    parts: tuple[Inner, ...] = ()
    """More parts."""
    workers: int = operational(1)
    """How many at once."""
    kept: dict[str, int] = Field(default={})
    """Plain data."""


def test_what_decides_is_all_but_the_operational_fields_at_every_depth() -> None:
    whole = Outer(part=Inner(size=2), parts=(Inner(), Inner(size=3, patience=9)), workers=4, kept={"workers": 1})
    assert deciding(whole) == {"part": {"size": 2}, "parts": [{"size": 1}, {"size": 3}], "kept": {"workers": 1}}
    assert deciding(Outer(part=Other())) == {"part": {"colour": "red"}, "parts": [], "kept": {}}


def test_an_operational_field_has_limits_and_a_meaning_as_any_other() -> None:
    assert Outer(workers=3).workers == 3
    with pytest.raises(ValueError, match="greater than 0"):
        Inner(patience=0)
    assert Outer.model_fields["workers"].description == "How many at once."


def sample(**settings: object) -> SampleConfig:
    engine = {"type": "vllm"} | {name: value for name, value in settings.items() if name in VllmEngine.model_fields}
    rest = {name: value for name, value in settings.items() if name not in VllmEngine.model_fields}
    return SampleConfig.model_validate({"engine": engine} | rest)


WORK = {
    "engines": 2,
    "gpu_memory": 0.25,
    "cache_gib": 0.5,
    "sleep": True,
    "start_limit": 5,
    "silence_limit": 5,
    "shards": 4,
    "fidelity": {"completions": 64, "warn": 1, "error": 2},
}
"""Fields of sampling that change nothing in the rollouts."""
RESULT = {
    "dtype": "bfloat16",
    "tensor_parallel": 2,
    "max_sequences": 8,
    "cuda_graphs": False,
    "probe_tolerance": 0.1,
    "prompts": 7,
    "group_size": 2,
    "max_prompt_tokens": 9,
    "sampling": {"stop": ["."]},
    "rounds": 3,
    "weights": {"sums": 1, "words": 2},
    "curriculum": {"type": "success"},
}
"""Fields that may."""


def test_each_field_of_sampling_is_one_or_the_other() -> None:
    fields = {*VllmEngine.model_fields, *SampleConfig.model_fields} - {"type", "engine"}
    assert {*WORK, *RESULT} == fields


@pytest.mark.parametrize("name", WORK)
def test_how_the_work_is_done_leaves_the_digest(name: str) -> None:
    other = sample(**{name: WORK[name]})
    assert other != sample()
    assert config_digest(deciding(other)) == config_digest(deciding(sample()))


@pytest.mark.parametrize("name", RESULT)
def test_what_decides_the_rollouts_changes_the_digest(name: str) -> None:
    assert config_digest(deciding(sample(**{name: RESULT[name]}))) != config_digest(deciding(sample()))


def test_equal_sections_in_any_order_have_one_digest() -> None:
    assert config_digest({"a": 1, "b": {"c": [1, 2], "d": None}}) == config_digest(
        {"b": {"d": None, "c": [1, 2]}, "a": 1}
    )
    sections = [{}, {"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1}, {"a": {"a": 1}}]
    assert len({config_digest(section) for section in sections}) == len(sections)
