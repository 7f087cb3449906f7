"""A file over its base, and a run over a framework's convention."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from flows.config.loading import CONVENTIONS, dump_config, make_config, read_config, read_yaml
from flows.config.overrides import chosen, laid_over
from flows.config.schema import RunConfig
from stages.advantage.stage import advantage_rows
from stages.contract.errors import ConfigError
from tests.advantage.numbers import table
from tests.flows.config.test_config import SMALL, small

NAMES = sorted(path.stem for path in CONVENTIONS.glob("*.yaml"))


def test_mappings_are_laid_key_by_key_and_all_else_as_a_whole() -> None:
    lower = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": None}
    assert laid_over({"b": {"d": [3], "f": 4}}, lower) == {"a": 1, "b": {"c": 2, "d": [3], "f": 4}, "e": None}
    assert laid_over({"b": None}, lower) == {"a": 1, "b": None, "e": None}
    assert laid_over({}, lower) == lower


def test_another_kind_stands_alone_and_the_same_or_none_is_completed() -> None:
    lower = {"loss": {"type": "clipped", "epsilon_low": 0.1}}
    assert laid_over({"loss": {"type": "gpg"}}, lower) == {"loss": {"type": "gpg"}}
    for upper in ({"type": "clipped"}, {}):
        assert laid_over({"loss": upper}, lower) == lower


def test_a_convention_gives_the_kind_that_is_named_or_its_first() -> None:
    fragment = {"loss": [{"type": "clipped", "x": 1}, {"type": "cispo", "x": 2}], "kl": {"clamp": 10}}
    assert chosen(fragment, {}) == {"loss": {"type": "clipped", "x": 1}, "kl": {"clamp": 10}}
    assert chosen(fragment, {"loss": {"type": "cispo"}})["loss"] == {"type": "cispo", "x": 2}
    assert chosen(fragment, {"loss": {"type": "gpg"}})["loss"] == {}


# Bases


def write(folder: Path, name: str, data: dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_a_file_says_only_what_it_changes_of_its_base(tmp_path: Path) -> None:
    write(tmp_path, "small.yaml", SMALL | {"advantage": {"scale": "none"}})
    path = write(tmp_path, "more/mine.yaml", {"base": "../small.yaml", "run": "mine", "update": {"epochs": 2}})
    config = read_config(path, {"seed": 5})
    assert config == small(run="mine", update__epochs=2, advantage__scale="none", seed=5)
    assert "base" not in yaml.safe_load(dump_config(config))


def test_a_base_that_is_missing_no_name_or_has_a_base_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        read_config(write(tmp_path, "a.yaml", {"base": "gone.yaml"}), {})
    with pytest.raises(ConfigError, match=r"a\.yaml: base is \['b'\]; the name of a YAML file is wanted"):
        read_config(write(tmp_path, "a.yaml", {"base": ["b"]}), {})
    write(tmp_path, "b.yaml", {"base": "a.yaml"})
    with pytest.raises(ConfigError, match=r"its base b\.yaml has a base itself"):
        read_config(write(tmp_path, "a.yaml", {"base": "b.yaml"}), {})


# Conventions


def test_there_is_a_file_for_each_convention_and_the_other_way_round() -> None:
    named = next(part for part in get_args(RunConfig.model_fields["convention"].annotation) if get_args(part))
    assert sorted(get_args(named)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_of_a_convention_can_be_used_and_says_why(name: str) -> None:
    fragment = read_yaml(CONVENTIONS / f"{name}.yaml")
    assert set(fragment) == {"advantage", "update"}
    for entry in fragment["advantage"]:
        critic = {"critic": {}} if entry["type"] == "gae" else {}
        config = small(convention=name, advantage={"type": entry["type"]}, **critic).model_dump(mode="json")[
            "advantage"
        ]
        assert laid_over(entry, config) == config
    for entry in fragment["update"]["loss"]:
        config = small(convention=name, update={"loss": {"type": entry["type"]}}).model_dump(mode="json")["update"]
        assert laid_over(entry, config["loss"]) == config["loss"]
        assert laid_over(fragment["update"]["kl"], config["kl"]) == config["kl"]
    for line in (CONVENTIONS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        assert "#" in line or line.endswith(":") or line.strip().startswith("- type: "), line


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_configuration_says_all_and_stays_the_same(name: str) -> None:
    config = small(convention=name)
    assert make_config(yaml.safe_load(dump_config(config)), "run.yaml") == config
    assert config != small(convention=name, advantage__eps=0.5)


def test_what_the_user_says_is_kept() -> None:
    config = small(convention="verl", advantage__eps=0.5, update__kl={"clamp": None}, update__loss__dual_clip=None)
    assert (config.advantage.eps, config.advantage.constant_groups) == (0.5, "keep")
    assert (config.update.kl.clamp, config.update.loss.dual_clip) == (None, None)
    assert small(convention="trl", update__mismatch=None).update.mismatch is None
    assert small(convention="trl", advantage={"type": "reinforce"}) == small(
        convention="trl", advantage={"type": "reinforce"}, update__mismatch__high=3.0
    )


def test_an_unknown_convention_is_told() -> None:
    with pytest.raises(ConfigError, match="convention: Input should be 'deepseekmath', 'trl', 'verl'"):
        small(convention="../conventions/trl")


@pytest.mark.parametrize(
    ("name", "ddof", "eps"),
    [("trl", 1, 1e-4), ("verl", 1, 1e-6), ("openrlhf", 1, 1e-9), ("open_instruct", 0, 1e-8), ("deepseekmath", 0, 0)],
)
def test_the_advantages_of_a_convention_by_hand(name: str, ddof: int, eps: float) -> None:
    rewards = [0.001, 0.0, 0.0, 0.0005]  # so small that eps counts
    out, _ = advantage_rows(table(["a"] * 4, rewards, [1] * 4), small(convention=name).advantage)
    wanted = (np.array(rewards) - np.mean(rewards)) / (np.std(rewards, ddof=ddof) + eps)
    np.testing.assert_allclose(out["advantages"].list.first().to_numpy(), wanted, rtol=1e-6)


def test_the_advantages_of_nemo_by_hand() -> None:
    out, _ = advantage_rows(table(["a"] * 3, [3.0, 0.0, 1.0], [1] * 3), small(convention="nemo").advantage)
    # others 0 1: mean 1/2, sample std √(1/2); 3 1: 2, √2; 3 0: 3/2, √(9/2)
    wanted = [2.5 / (0.5**0.5 + 1e-6), -2 / (2**0.5 + 1e-6), -0.5 / (4.5**0.5 + 1e-6)]
    np.testing.assert_allclose(out["advantages"].list.first().to_numpy(), wanted, rtol=1e-6)


def test_what_else_conventions_differ_in() -> None:
    cispo = {name: small(convention=name, update={"loss": {"type": "cispo"}}).update.loss for name in NAMES}
    assert cispo["trl"].bounds() == (None, 5.0)
    assert cispo["verl"].bounds() == pytest.approx((0.8, 1.2))
    assert {name: small(convention=name).update.kl.clamp for name in NAMES} == {
        "deepseekmath": None,
        "nemo": 10.0,
        "open_instruct": None,
        "openrlhf": 10.0,
        "trl": None,
        "verl": 10.0,
    }
    assert small(convention="deepseekmath").update.loss.aggregation == "sequence_mean"
    assert small(convention="verl").update.loss.dual_clip == 3.0
