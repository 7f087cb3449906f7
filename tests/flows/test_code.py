"""`configs/code.yaml` as it stands but smaller: a tiny model's programs run in the sandbox, and are judged rightly."""

import json
import os
import re

import polars as pl
import pytest

from tests.flows.conftest import ROOT, run_grpo

CONFIG = ROOT / "configs" / "code.yaml"
SMALLER = (
    *("warmstart.tuning.steps=120", "warmstart.tuning.batch_size=32"),
    *("sample.prompts=6", "sample.group_size=4", "evaluate=null"),
)
SETTINGS = [word for setting in SMALLER for word in ("--set", setting)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    done = run_grpo(folder, "train", CONFIG, "--iterations", "2", *SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "artifacts" / "code" / "iterations"


def test_each_program_earns_what_it_computes(run):
    seen = set()
    for k in (1, 2):
        rows = pl.read_parquet(run / f"{k:04d}/sample/rollouts.parquet").join(
            pl.read_parquet(run / f"{k:04d}/score/scores.parquet"), on=("prompt_id", "sample"), validate="1:1"
        )
        assert rows.height == 24
        for row in rows.iter_rows(named=True):
            added = re.fullmatch(r"f=lambda x:x\+(-?\d+)", row["completion"])
            assert row["status_code"] == "ok", row
            if added and len(added[1].lstrip("-")) < 3:
                right = int(added[1]) == int(row["answer"])
                assert (row["reward"], row["reward_code"]) == (right, right), row
                assert json.loads(row["note_code"])["passed"] == 2 * right
                seen.add(right)
    assert False in seen


def test_what_the_tests_expect_was_shown_to_no_model(run):
    for file in run.glob("*/sample/rollouts.parquet"):
        asked = pl.read_parquet(file)["prompt"].to_list()
        assert not [text for text in asked if "expected" in text or "arguments" in text]


@pytest.mark.skipif(os.geteuid() != 0, reason="root only")
def test_a_sandbox_that_does_not_hold_is_refused_before_the_run_begins(tmp_path):
    done = run_grpo(tmp_path, "train", CONFIG, "--set", "score.rewards.0.mode=rlimit")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the sandbox's `mode: rlimit` cannot hold a program that runs as root")
    assert not (tmp_path / "artifacts" / "code").exists()
