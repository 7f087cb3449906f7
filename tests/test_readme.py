"""What the README says is so."""

import re
import tomllib
from pathlib import Path

import yaml
from typer.main import get_command

from flows.cli import app
from flows.config.loading import make_config
from flows.config.reference import markdown
from tests.flows.conftest import SMALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_configuration_fields_is_that_of_the_docstrings():
    assert markdown() in README, "run `grpo fields` and put what it prints at the end of the README"


def test_every_field_has_a_meaning():
    for line in markdown().splitlines()[2:]:
        assert len(line.replace("\\|", "").split("|")[3].strip()) > 5, line


def test_every_command_and_option_that_it_names_exists():
    commands = get_command(app).commands
    for line in re.findall(r"grpo ([a-z]+[^`\n|]*)", README):
        name, *rest = line.split()
        if name not in commands:
            assert line.startswith(("flows", "train configs")), f"grpo {line}"
            continue
        known = {option for parameter in commands[name].params for option in parameter.opts}
        used = {word for word in rest if word.startswith("--")}
        assert used <= known, f"grpo {line}"


def test_the_commands_of_the_tests_are_the_ones_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -r tests/requirements.txt && pytest" in README
    assert "pip install -e . && grpo train configs/quickstart.yaml" in README
    for command in (
        "pip install -q -e .",
        "grpo train configs/quickstart.yaml",
        "pip install -q -r tests/requirements.txt",
        "pytest",
    ):
        assert command in ci


def test_its_yaml_examples_are_configurations():
    data = yaml.safe_load(SMALL.read_text(encoding="utf-8"))
    examples = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(examples) >= 6
    for example in examples:
        changed = yaml.safe_load(example)
        parts = {key: {**data.get(key, {}), **part} for key, part in changed.items()}
        make_config(data | parts, "README")


def test_versions_that_it_names_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(pin.split("==") for pin in project["dependencies"] if "==" in pin)
    assert f"Prefect is pinned to {pins['prefect']}" in README
    assert f"torch=={pins['torch']}" in README
    assert "Python 3.11 or newer" in README and project["requires-python"] == ">=3.11"


def test_the_commands_that_take_no_folder_of_runs_are_named():
    without = {
        name
        for name, command in get_command(app).commands.items()
        if "--artifacts" not in {option for parameter in command.params for option in parameter.opts}
    }
    assert (
        without == {"fields", "lineage"}
        and "Every command but `fields` and `lineage` takes `--artifacts DIR`" in README
    )
