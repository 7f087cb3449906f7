"""The flows' parameters make a form that explains itself, in which every field of the configuration may stay open."""

import pytest
import yaml
from jsonschema import ValidationError as SchemaError
from jsonschema import validate
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter, ValidationError

from flows.config.forms import NULL, StageOverrides, TrainOverrides, shaped
from flows.config.loading import make_config
from flows.config.messages import models_in
from flows.config.overrides import Dotted, apply_overrides
from flows.config.schema import RunConfig
from flows.serving.deployments import offers
from flows.stage import stage
from flows.train import train
from tests.flows.conftest import SMALL

FLOWS = [offer.flow for offer in offers()]
TRAIN, STAGE = TypeAdapter(TrainOverrides), TypeAdapter(StageOverrides)
SCHEMA = parameter_schema(train)
SECTIONS = [name for name in RunConfig.model_fields if models_in(RunConfig.model_fields[name].annotation)]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_has_a_type_and_a_description(flow):
    for name, field in shaped(parameter_schema(flow).properties).items():
        assert field.get("description") and field.get("title"), name
        assert "type" in field or "anyOf" in field or "enum" in field, name


def test_the_stage_is_chosen_from_a_list():
    field = parameter_schema(stage).properties["stage"]
    made = ["prompts", "warmstart", "reward_model", "sample", "score", "advantage", "update", "evaluate"]
    assert field["enum"] == made
    assert parameter_schema(stage).required == ["stage", "run", "iteration"]
    assert SCHEMA.required == ["config"]


def leaves(model, name=""):
    """Dotted names of all fields of a configuration, of each kind, that have no parts."""
    for part, field in model.model_fields.items():
        place = f"{name}{part}.0" if str(field.annotation).startswith("tuple[") else f"{name}{part}"
        inside = models_in(field.annotation)
        if not inside:
            yield place.removesuffix(".0")
        for child in inside:
            yield from leaves(child, f"{place}.")


def at(name, value):
    """A form in which one field is filled in."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def test_each_field_of_each_kind_is_in_the_form_down_to_the_leaves_with_a_description_and_may_be_empty():
    definitions = SCHEMA.definitions
    everything = {name for name in leaves(RunConfig) if name not in ("run", "iterations")}
    assert {"update.loss.threshold", "score.rewards.0.weight", "sample.engine.dtype", "critic.start.path"} <= everything
    for name in everything:
        fields, field = definitions["RunConfig"]["properties"], {}
        for part in name.split("."):
            field = fields[part]
            assert field["description"] and field["title"] == part, name
            refs = [choice["$ref"] for choice in field.get("anyOf", []) if "$ref" in choice]
            if refs:  # a section, closed at first
                assert field["default"] is None and field["anyOf"][-1] == {"type": "null", "title": "as configured"}
            fields = definitions[refs[0].split("/")[-1]]["properties"] if refs else {}
        assert "$ref" not in str(field) and "default" not in field, name
        assert all(choice.get("type") != "null" for choice in field.get("anyOf", [])), name
    assert TRAIN.validate_python(dict.fromkeys(SECTIONS)) == {}


def test_what_is_filled_in_becomes_dotted_names_and_what_is_empty_stays_out():
    form = dict.fromkeys(SECTIONS) | {
        "score": {"reference": None, "rewards": {"0": None, "1": {"weight": 0.5}}},
        "update": {"loss": {"type": "cispo", "epsilon_low": NULL}, "optimizer": {"learning_rate": 1e-3}, "kl": None},
        "hardware": {"threads": NULL},
        "evaluate": {"k": [1, 2], "samples": 2},
    }
    validate({"config": "x", "overrides": form}, SCHEMA.model_dump_for_openapi())
    got = TRAIN.validate_python(form)
    assert got == {
        "score.rewards.1.weight": 0.5,
        "update.loss.type": "cispo",
        "update.loss.epsilon_low": None,
        "update.optimizer.learning_rate": 1e-3,
        "evaluate.samples": 2,
        "evaluate.k": [1, 2],
        "hardware.threads": None,
    }
    config = make_config(apply_overrides(yaml.safe_load(SMALL.read_text()), got), "form")
    assert [reward.weight for reward in config.score.rewards] == [1.0, 0.5]
    assert (config.score.rewards[1].type, config.update.loss.type, config.hardware.threads) == ("length", "cispo", None)


def test_a_section_is_taken_away_by_null():
    assert TRAIN.validate_python({"evaluate": NULL, "update": {"lora": NULL}}) == {
        "evaluate": None,
        "update.lora": None,
    }


@pytest.mark.parametrize("names", [{"update.epochs": 2}, Dotted({"evaluate": None, "seed": 3}), Dotted()])
def test_dotted_names_stay_as_they_are(names):
    assert TRAIN.validate_python(names) == names
    assert TRAIN.validate_python(TRAIN.validate_python(names)) == names


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"update": {"epoch": 2}}, "update.epoch\n  Extra inputs are not permitted"),
        ({"update": {"epochs": "two"}}, "update.epochs\n  Input should be a valid integer"),
        ({"update": {"epochs": 0}}, "update.epochs\n  Input should be greater than 0"),
        ({"advantage": {"type": "ppo"}}, "advantage.type\n  Input should be 'grpo', 'rloo'"),
        (
            {"update": {"optimizer": {"learning_rate": float("inf")}}},
            "rate\n  Input should be a finite number",
        ),
    ],
)
def test_a_wrong_form_is_refused_by_the_form_itself(form, told):
    with pytest.raises(ValidationError) as error:
        TRAIN.validate_python(form)
    assert told in str(error.value)
    if form != {"update": {"optimizer": {"learning_rate": float("inf")}}}:  # JSON has no such number
        with pytest.raises(SchemaError):
            validate({"config": "x", "overrides": form}, SCHEMA.model_dump_for_openapi())


def test_a_stage_takes_no_settings_of_the_run():
    assert STAGE.validate_python({"advantage": {"scale": "none"}}) == {"advantage.scale": "none"}
    for name in ("seed", "convention", "run", "iterations"):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            STAGE.validate_python({name: 1})


def test_limits_of_a_field_that_kinds_share_are_those_of_all():
    loss = SCHEMA.definitions["ClippedLoss"]["properties"]
    assert loss["temperature_positive"]["exclusiveMinimum"] == 0
    assert "minimum" not in loss["epsilon_high"]  # one kind takes 0, another does not
