"""A run's configuration: every file in `configs/` loads, and what cannot be used is told field by field."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.diff import differences
from flows.config.loading import dump_config, make_config, parse_overrides, read_config, read_yaml
from flows.config.overrides import apply_overrides
from flows.config.schema import RunConfig
from flows.runs.access import check_same
from stages.contract.config import config_digest
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths

CONFIGS = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))

SMALL: dict[str, Any] = {
    "run": "small",
    "iterations": 2,
    "prompts": {"source": {"type": "file", "path": "prompts.jsonl"}},
    "warmstart": {"model": {"type": "new"}},
    "score": {"rewards": [{"type": "math"}, {"type": "length", "target": 4, "limit": 8, "weight": 0.5}]},
}


def small(**overrides: Any) -> RunConfig:
    """The small configuration with some fields set; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return make_config(apply_overrides(SMALL, named), "small.yaml")


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        small(**overrides)
    return str(caught.value)


def test_there_are_configurations() -> None:
    assert "quickstart.yaml" in {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_survives_its_own_dump(path: Path, tmp_path: Path) -> None:
    config = read_config(path, {})
    assert config.run == path.stem
    frozen = tmp_path / "run.yaml"
    frozen.write_text(dump_config(config), encoding="utf-8")
    assert read_config(frozen, {}) == config
    assert differences(config, read_config(frozen, {})) == []
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_dump_writes_every_field_out() -> None:
    data = yaml.safe_load(dump_config(small()))
    assert data["sample"]["group_size"] == 8
    assert data["update"]["kl"] == {"coefficient": 0.0, "estimator": "k3", "clamp": None, "adaptive": None}
    assert data["score"]["rewards"][1]["weight"] == 0.5
    assert set(data) == set(RunConfig.model_fields)


# What cannot be used


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"updat": {}}, "updat: unknown key; did you mean 'update'?"),
        ({"update__epoch": 2}, "update.epoch: unknown key; did you mean 'epochs'?"),
        ({"sample__sampling__temprature": 1}, "sample.sampling.temprature: unknown key; did you mean 'temperature'?"),
        ({"qqq": 1}, "qqq: unknown key; known are ['run', 'seed'"),
        ({"update__epochs": "many"}, "update.epochs: Input should be a valid integer"),
        ({"update__epochs": "many"}, "(seen: 'many')"),
        ({"iterations": 2.5}, "iterations: Input should be a valid integer, got a number with a fractional part"),
        ({"iterations": 0}, "iterations: Input should be greater than 0 (seen: 0)"),
        ({"run": 2024}, "run: Input should be a valid string (seen: 2024)"),
        ({"sample": [1]}, "sample: Input should be a valid dictionary or instance of SampleConfig (seen: [1])"),
        ({"sample__group_size": 0}, "sample.group_size: Input should be greater than 0 (seen: 0)"),
        ({"advantage__type": "grop"}, "advantage: Input tag 'grop' found using 'type' does not match"),
        ({"advantage": {"type": "gae", "lambda": 1}}, "advantage.lambda: unknown key; did you mean 'gae_lambda'?"),
        ({"advantage__scal": "none"}, "advantage.scal: unknown key; did you mean 'scale'?"),
        ({"advantage__eps": -1}, "advantage.eps: Input should be greater than or equal to 0 (seen: -1)"),
        ({"sample__sampling__top_p": 0}, "sample.sampling.top_p: Input should be greater than 0 (seen: 0)"),
        ({"update__kl__coefficient": float("nan")}, "update.kl.coefficient: Input should be a finite number"),
        (
            {"update__optimizer__learning_rate": "fast"},
            "update.optimizer.learning_rate: Input should be a valid number",
        ),
        ({"score__rewards__0__type": "maths"}, "score.rewards.0: Input tag 'maths' found using 'type' does not match"),
        ({"score__rewards__0__type": "maths"}, "'reasoning_gym', 'math', 'format', 'length', 'cosine', 'overlong'"),
        ({"score__rewards": []}, "score.rewards: Tuple should have at least 1 item"),
        ({"score__rewards__1": {"type": "math"}}, "two rewards are named 'math': give one of them a `name`"),
        ({"score__rewards__1__limit": 4}, "limit 4 must be greater than target 4"),
        ({"score__rewards__0__name": "Math!"}, "name: String should match pattern '^[a-z][a-z0-9_]*$' (seen: 'Math!')"),
        ({"prompts__source": {}}, "prompts.source: Unable to extract tag using discriminator 'type' (seen: {})"),
        ({"prompts__template": "{prompt"}, "prompts.template: expected '}' before end of string: write {{ and }}"),
        ({"prompts__heldout": 1}, "prompts.heldout: Input should be less than 1 (seen: 1)"),
        ({"warmstart__model__heads": 3}, "hidden_size 128 divided by heads 3 must be an even number"),
        ({"update__loss__aggregation": "constant"}, "update.loss: aggregation constant with length None"),
        ({"update__loss": {"type": "sapo", "length": 9}}, "update.loss: aggregation token_mean with length 9"),
        ({"update__loss": {"dual_clip": 3, "delta": 3}}, "update.loss: dual_clip and delta bound the same ratios"),
        ({"update__loss": {"type": "cispo", "cap": "absolute", "epsilon_low": 9}}, "kept within [9.0, 4.0]"),
        ({"update__kl__adaptive": {"target": 0.1}}, "update.kl: adaptive multiplies the coefficient, which is 0"),
        ({"update__mismatch": {"type": "mask", "low": 3}}, "update.mismatch: low 3.0 must be less than high 2.0"),
        (
            {"update__mismatch": {"type": "mask"}, "update__old_logprobs": "sampler"},
            "update: mismatch compares the trainer's old log-probabilities: set old_logprobs to recompute",
        ),
        (
            {"update__entropy__top": 0.2, "update__old_logprobs": "sampler"},
            "update: entropy.top needs the old policy's",
        ),
        ({"evaluate__k": [1, 4]}, "evaluate: pass@4 needs k from 1 to samples = 1"),
        ({"hardware__device": "tpu"}, "hardware.device: Input should be 'auto', 'cpu' or 'cuda' (seen: 'tpu')"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_seen_and_what_is_wanted(overrides: dict[str, Any], told: str) -> None:
    message = refusal(**overrides)
    assert message.startswith("small.yaml: the configuration cannot be used:\n  ")
    assert told in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"update__kl__coefficient": 0.1}, "which needs `score.reference: start`"),
        (
            {"sample__group_size": 1},
            "sample.group_size is 1, but advantage.type grpo compares the completions of a group",
        ),
        ({"sample__group_size": 1, "advantage__type": "rloo"}, "advantage.type rloo compares"),
        (
            {"advantage": {"type": "gae", "kl": {"coefficient": 0.1}}},
            "advantage.kl.coefficient is above 0, which needs",
        ),
        ({"sample__rounds": 2, "advantage": {"type": "reinforce"}}, "needs an advantage.type that compares groups"),
        ({"sample__rounds": 2, "advantage__constant_groups": "keep"}, "with constant_groups: drop"),
        ({"advantage": {"baseline": "leave_one_out", "scale": "mad"}}, "group, batch or none, not with mad"),
        ({"sample__sampling__temperature": 0}, "sample.sampling.temperature is 0"),
        ({"update__old_logprobs": "sampler", "sample__sampling__top_k": 5}, "needs top_p 1 and top_k 0"),
        ({"update__old_logprobs": "sampler", "sample__sampling__top_p": 0.9}, "needs top_p 1 and top_k 0"),
        ({"advantage__type": "gae"}, "gae needs the values of a critic: add a section `critic: {}`"),
        ({"critic": {}}, "there is a critic, but advantage.type grpo gives it no returns to learn from: use gae"),
        ({"score__reference": "average"}, "score.reference average needs the average that `update.average"),
        ({"prompts__heldout": 0}, "evaluate needs held-out prompts: set prompts.heldout, or evaluate to null"),
        ({"evaluate__success": "maths"}, "evaluate.success is 'maths'; the rewards are named ['math', 'length']"),
        (
            {"sample.sampling": {"logprobs": "raw", "temperature": 0.6}, "update.mismatch": {"type": "truncate"}},
            "update.mismatch compares the sampler's log-probabilities with the trainer's",
        ),
        (
            {
                "sample.sampling.top_p": 0.9,
                "advantage": {"type": "reinforce", "kl": {"coefficient": 0.1}},
                "score.reference": "start",
            },
            "advantage.kl.coefficient compares the sampler's log-probabilities with the trainer's",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_told(overrides: dict[str, Any], told: str) -> None:
    assert told in refusal(**overrides)


def test_what_cures_a_misfit_is_accepted() -> None:
    assert small(update__kl__coefficient=0.1, score__reference="start").score.reference.type == "start"
    assert small(prompts__heldout=0, evaluate=None).evaluate is None
    assert small(advantage__type="gae", critic={}).critic is not None
    assert small(score__reference="average", update__average={"decay": 0.9}).update.average is not None
    assert small(update__loss={"epsilon_high": 0.28}).update.loss.type == "clipped"
    assert small(sample__group_size=1, advantage={"type": "reinforce_plus_plus"}).sample.group_size == 1
    other = {"type": "file", "path": "heldout.jsonl"}
    assert small(prompts__heldout=0, prompts__heldout_source=other).evaluate is not None


def test_a_missing_field_is_named() -> None:
    data = {name: value for name, value in SMALL.items() if name not in ("run", "score")}
    with pytest.raises(ConfigError, match="missing; it has no default") as caught:
        make_config(data, "small.yaml")
    assert str(caught.value).splitlines() == [
        "small.yaml: the configuration cannot be used:",
        "  run: missing; it has no default",
        "  score: missing; it has no default",
    ]


def test_all_wrong_fields_are_told_at_once() -> None:
    told = refusal(update__epochs=0, sample__group_size=0, zebra=1)
    assert all(name in told for name in ("update.epochs", "sample.group_size", "zebra"))
    assert len(told.splitlines()) == 4


def test_a_configuration_cannot_be_changed_in_place() -> None:
    config = small()
    with pytest.raises(ValueError, match="frozen"):
        config.iterations = 9  # type: ignore[misc]
    assert config.iterations == 2


# Files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read \(No such file or directory\)"):
        read_yaml(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"run: [1, 2\n", "not YAML: while parsing a flow sequence"),
        (b"run: a\n\tseed: 1\n", "not YAML: .*line 2"),
        (b"run: \xff\n", "not YAML: .*utf-8"),
        (b"run: \0\n", "not YAML: unacceptable character"),
        (b"run: !!python/object/apply:os.getcwd []\n", "not YAML: could not determine a constructor"),
        (b"- run: a\n- seed: 1\n", "a mapping is wanted, this is list"),
        (b"quickstart\n", "a mapping is wanted, this is str"),
        (b"", "a mapping is wanted, this is NoneType"),
        (b"# nothing yet\n", "a mapping is wanted, this is NoneType"),
    ],
)
def test_a_file_that_holds_no_mapping_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {told}"):
        read_yaml(path)


def test_keys_that_are_no_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("1: a\n")
    with pytest.raises(ConfigError, match="1: Keys should be strings"):
        read_config(path, {})


# Overrides


def test_overrides_are_names_and_yaml_values() -> None:
    settings = ["update.epochs=2", "run=x=y", "evaluate=null", "score.rewards.0={type: math}", "seed=", "a.b=[1, 2.5]"]
    assert parse_overrides(settings) == {
        "update.epochs": 2,
        "run": "x=y",
        "evaluate": None,
        "score.rewards.0": {"type": "math"},
        "seed": None,
        "a.b": [1, 2.5],
    }


@pytest.mark.parametrize("setting", ["update.epochs", "=2", "", "update.epochs:2"])
def test_an_override_without_name_and_value_is_told(setting: str) -> None:
    with pytest.raises(ConfigError, match="NAME=VALUE is wanted"):
        parse_overrides([setting])


def test_an_override_that_is_not_yaml_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--set update\.epochs=\[2: the value is not YAML"):
        parse_overrides(["update.epochs=[2"])


def test_overrides_reach_nested_fields_and_list_entries_and_leave_the_original_alone() -> None:
    config = small(update__optimizer__learning_rate=0.5, score__rewards__1__limit=16, score__rewards__0__weight=2)
    assert config.update.optimizer.learning_rate == 0.5
    assert [reward.weight for reward in config.score.rewards] == [2.0, 0.5]
    assert config.model_dump()["score"]["rewards"][1]["limit"] == 16
    assert SMALL["score"]["rewards"][1] == {"type": "length", "target": 4, "limit": 8, "weight": 0.5}
    assert "update" not in SMALL


def test_another_type_takes_the_place_of_what_was_said_for_the_former_one() -> None:
    resolved = small(update__loss__epsilon_low=0.3).model_dump(mode="json")
    changed = {"update.loss.epsilon_high": 4.0, "update.loss.type": "cispo", "sample.engine.type": "vllm"}
    config = make_config(apply_overrides(resolved, changed | {"advantage.type": "rloo"}), "run.yaml")
    assert (config.update.loss.type, config.sample.engine.type, config.advantage.type) == ("cispo", "vllm", "rloo")
    assert config.update.loss.epsilon_high == 4.0
    same = make_config(apply_overrides(resolved, {"update.loss.type": "clipped"}), "run.yaml")
    assert same.update.loss.epsilon_low == 0.3


def test_the_number_after_the_last_entry_adds_one() -> None:
    added = {"score.rewards.2.target": 5, "score.rewards.2.limit": 9, "score.rewards.2.type": "length"}
    config = make_config(apply_overrides(SMALL, added | {"score.rewards.2.name": "brief"}), "small.yaml")
    before = [reward["type"] for reward in SMALL["score"]["rewards"]]
    assert [reward.type for reward in config.score.rewards] == [*before, "length"]
    assert (config.score.rewards[2].name, config.score.rewards[2].target) == ("brief", 5)
    whole = apply_overrides(SMALL, {"score.rewards.2": {"type": "format", "name": "shape"}})
    assert make_config(whole, "small.yaml").score.rewards[2].name == "shape"
    assert len(SMALL["score"]["rewards"]) == 2
    assert "score.rewards.2: " in refusal(score__rewards__2__weight=2.0)


def test_a_later_override_is_put_on_an_earlier_one() -> None:
    overrides = {"score.rewards": [{"type": "format"}], "score.rewards.0.weight": 3, "evaluate": None}
    config = make_config(apply_overrides(SMALL, overrides | {"evaluate.samples": 2}), "small.yaml")
    assert [(reward.type, reward.weight) for reward in config.score.rewards] == [("format", 3.0)]
    assert config.evaluate is not None
    assert config.evaluate.samples == 2


def test_numbers_as_yaml_reads_them_are_numbers() -> None:
    assert small(**parse_overrides(["update__optimizer__learning_rate=5e-4"])).update.optimizer.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("score.rewards.3.weight", "'3' is not a place in a list of 2, counted from 0; 2 adds an entry"),
        ("score.rewards.3", "'3' is not a place in a list of 2, counted from 0; 2 adds an entry"),
        ("score.rewards.-1.weight", "'-1' is not a place in a list of 2"),
        ("score.rewards.math.weight", "'math' is not a place in a list of 2"),
        ("iterations.x", "iterations is 2, which has no parts"),
        ("iterations.x.y", "2 before 'x' has no parts"),
        ("run.name", "run is 'small', which has no parts"),
    ],
)
def test_an_override_that_leads_nowhere_is_told(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(SMALL, {name: 1})
    assert str(caught.value).startswith(f"{name}: ")
    assert told in str(caught.value)


def test_an_override_of_an_unknown_field_is_told_as_in_a_file() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.thresold: unknown key; did you mean 'threshold'\?"):
        read_config(CONFIGS[0], {"evaluate.thresold": 2})


# Comparison


def test_differences_name_fields_and_both_values() -> None:
    other = small(seed=3, score__rewards__1__weight=0.25, sample__sampling__stop_token_ids=[5])
    assert differences(small(), other) == [
        "sample.sampling.stop_token_ids: [] there, nothing here",
        "sample.sampling.stop_token_ids.0: nothing there, 5 here",
        "score.rewards.1.weight: 0.5 there, 0.25 here",
        "seed: 0 there, 3 here",
    ]


def test_a_reward_more_and_an_evaluation_less_are_differences() -> None:
    more = small(score__rewards=[*SMALL["score"]["rewards"], {"type": "format"}])
    assert 'score.rewards.2.type: nothing there, "format" here' in differences(small(), more)
    assert "evaluate.samples: 1 there, nothing here" in differences(small(), small(evaluate=None))


def test_more_iterations_other_hardware_and_the_name_do_not_make_another_run() -> None:
    same = small(iterations=9, hardware__threads=2, hardware__device="cpu", run="other")
    assert differences(small(), same) == []
    assert differences(small(), small()) == []


@pytest.mark.parametrize(("place", "refused"), [("0001/update", True), ("0001/score", True), ("0001/sample", False)])
def test_a_critic_cannot_be_changed_once_a_stage_was_done_with_it(tmp_path: Path, place: str, refused: bool) -> None:
    paths = RunPaths(tmp_path / "small")
    (paths.iterations / place).mkdir(parents=True)
    (paths.iterations / place / "manifest.json").write_text("{}")
    critic = {"advantage__type": "gae", "critic": {}}
    paths.config.write_text(dump_config(small(**critic)), encoding="utf-8")
    assert check_same(paths, small(**critic))
    other = small(**critic | {"critic": {"clip": 0.2}})
    if refused:
        with pytest.raises(ConfigError, match=r"critic\.clip: null there, 0\.2 here"):
            check_same(paths, other)
    else:
        assert check_same(paths, other)


# Sections


def digests(config: RunConfig) -> dict[str, str]:
    stages = ("prompts", "warmstart", "sample", "score", "advantage", "update", "evaluate")
    return {stage: config_digest(config.section(stage)) for stage in stages}


@pytest.mark.parametrize(
    ("overrides", "decided"),
    [
        ({"prompts__heldout": 0.2}, {"prompts"}),
        ({"warmstart__model__layers": 2}, {"warmstart"}),
        ({"sample__group_size": 4}, {"sample"}),
        ({"sample__sampling__max_tokens": 9}, {"sample", "evaluate"}),
        ({"score__rewards__1__weight": 0.25}, {"score", "evaluate"}),
        ({"sample__rounds": 2}, {"sample"}),
        ({"score__reference": "start"}, {"score"}),
        ({"advantage__scale": "none"}, {"advantage"}),
        ({"update__epochs": 2}, {"update"}),
        ({"evaluate__samples": 2}, {"evaluate"}),
        ({"iterations": 5, "hardware__threads": 1, "seed": 4}, set()),
    ],
)
def test_a_section_holds_what_decides_a_stage_and_no_more(overrides: dict[str, Any], decided: set[str]) -> None:
    before, after = digests(small()), digests(small(**overrides))
    assert {stage for stage in before if before[stage] != after[stage]} == decided


def test_the_critic_belongs_to_the_stages_that_it_decides() -> None:
    before = digests(small(advantage__type="gae", critic={}))

    def changed(**critic: Any) -> set[str]:
        after = digests(small(advantage__type="gae", critic=critic))
        return {stage for stage in before if before[stage] != after[stage]}

    assert changed(clip=0.2) == {"update"}
    assert changed(start={"type": "folder", "path": "critic"}) == {"score", "update"}
    assert "critic" not in small().section("update")


def test_the_success_is_the_first_reward_unless_one_is_named() -> None:
    assert small().success() == "math"
    assert small(evaluate__success="length").success() == "length"
    assert small(evaluate=None, score__rewards__0__name="right").success() == "right"


def test_rewards_decide_what_is_sampled_where_sampling_asks_for_them() -> None:
    before, after = digests(small(sample__rounds=2)), digests(small(sample__rounds=2, score__rewards__1__weight=0.25))
    assert {stage for stage in before if before[stage] != after[stage]} == {"sample", "score", "evaluate"}
