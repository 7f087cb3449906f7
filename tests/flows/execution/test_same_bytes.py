"""Each stage gives the same bytes with four threads, beside other work, as many times as it is run."""

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from stages.contract.manifest import read_manifest
from tests.busy import busy, default_threads
from tests.flows.conftest import GRPO, ROOT, SMALL, environment

TIMES = 5
WIDE: dict[str, Any] = {
    "base": str(SMALL),
    "run": "wide",
    "iterations": 1,
    "warmstart": {
        "model": {"type": "new", "hidden_size": 128, "layers": 1, "heads": 2, "context_length": 32},
        "tuning": {"steps": 10, "batch_size": 64},
    },
    "sample": {"prompts": 48, "group_size": 8},
    "hardware": {"device": "cpu", "threads": 4},
}
"""Wide enough for torch to divide the sums over states among four threads."""
PAIRS = {"reward_model": {"pairs": {"type": "answers", "per_prompt": 1}, "batch_size": 64, "epochs": 1}}
GAE = {"advantage": {"type": "gae"}, "critic": {}}
KINDS: dict[str, dict[str, Any]] = {
    "reward model": PAIRS,
    "PPO": GAE,
    "RLHF": PAIRS | GAE | {"score": {"rewards": [{"type": "reward_model"}]}},
    "adapter": {"update": {"lora": {"rank": 4}}},
    "averaged reference": {"update": {"average": {"decay": 0.5}}, "score": {"reference": {"type": "average"}}},
    "entropy, mismatch": {
        "update": {"entropy": {"bonus": 0.01, "top": 0.5}, "mismatch": {"type": "truncate", "level": "sequence"}}
    },
    **{
        " ".join(map(str, loss.values())): {"update": {"loss": loss}}
        for loss in (
            {"type": "clipped", "ratio": "sequence", "aggregation": "sequence_mean"},
            {"type": "clipped", "ratio": "sequence_token"},
            {"type": "policy_gradient"},
            {"type": "gpg"},
            {"type": "cispo"},
            {"type": "sapo"},
            {"type": "gmpo"},
            {"type": "dppo"},
        )
    },
}


@pytest.mark.load
@pytest.mark.parametrize(
    "kind", [name if name == "reward model" else pytest.param(name, marks=pytest.mark.long) for name in KINDS]
)
def test_replays_beside_other_work_with_four_threads_are_equal(kind, tmp_path):
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(WIDE | KINDS[kind]))
    variables = default_threads(environment())
    with busy():
        train = [str(GRPO), "train", "wide.yaml"]
        done = subprocess.run(train, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        again = [
            sys.executable,
            "-m",
            "tests.flows.execution.replays",
            str(tmp_path / "artifacts"),
            "wide",
            "--times",
            str(TIMES),
        ]
        done = subprocess.run(again, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["differing"] == []
    stages = ["prompts 0", "warmstart 0", *(["reward_model 0"] if "reward_model" in KINDS[kind] else []), "evaluate 0"]
    stages += [f"{stage} 1" for stage in ("sample", "score", "advantage", "update", "evaluate")]
    assert told["equal"] == dict.fromkeys(stages, TIMES)
    for name in ("sample", "update"):
        manifest = read_manifest(tmp_path / "artifacts/wide/iterations/0001" / name)
        assert (manifest.threads, manifest.deterministic) == (4, True)
        assert set(manifest.processor) >= {"torch", "onednn"}
