"""One `grpo serve` and one browser for the story, and where its pictures go."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.ui import Ui, window
from tests.flows.conftest import SMALL
from tests.flows.serving.served import Served, serving

CONFIGS = {
    "small": SMALL.read_text(encoding="utf-8"),
    "asking": "{base: small.yaml, run: asking, iterations: 1, gate: before_update}",
    "long": "{base: small.yaml, run: long, iterations: 1000}",
    "problems": """
        base: small.yaml
        run: problems
        iterations: 1
        prompts: {source: {type: file, path: data/problems.jsonl}, template: "{prompt} ="}
        score: {rewards: [{type: math, extract: text}]}
    """,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in a folder with a few configurations; two runs at a time."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "configs").mkdir()
    for name, text in CONFIGS.items():
        (folder / "configs" / f"{name}.yaml").write_text(text)
    with serving(folder, "--slots", "2") as server:
        yield server


@pytest.fixture(scope="module")  # while there is a browser, its event loop runs: no other test may meet it
def ui(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """The UI in a browser. Pictures are temporary; with `GRPO_SCREENSHOTS=1` the README's are taken anew."""
    shots = tmp_path_factory.mktemp("screenshots")
    kept = Path(__file__).parent / "screenshots" if os.environ.get("GRPO_SCREENSHOTS") else None
    with window(served.url, shots, kept, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
        browser.shot("end")  # where it stood when it failed
