"""The flows' parameters make a form that explains itself."""

import pytest
from prefect.utilities.callables import parameter_schema

from flows.stage import stage
from flows.train import train


@pytest.mark.parametrize("flow", [train, stage], ids=lambda flow: flow.name)
def test_every_parameter_has_a_type_and_a_description(flow):
    schema = parameter_schema(flow)
    for name, field in schema.properties.items():
        assert field.get("description"), name
        assert "type" in field or "anyOf" in field or "enum" in field, name


def test_the_stage_is_chosen_from_a_list():
    field = parameter_schema(stage).properties["stage"]
    assert field["enum"] == ["prompts", "warmstart", "sample", "score", "advantage", "update", "evaluate"]
    assert parameter_schema(stage).required == ["stage", "run", "iteration"]
    assert parameter_schema(train).required == ["config"]
