"""The command with vLLM as the engine: shards, engines and kills change no byte, and no process is left."""

import os
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest

from stages.contract.manifest import Manifest, read_manifest
from tests.flows.conftest import GRPO, SMALL, environment, run_grpo

SETTINGS = ["sample.engine.type=vllm", "sample.engine.cache_gib=0.25", "update.old_logprobs=sampler"]
VLLM = ["--iterations", "2", *(word for setting in SETTINGS for word in ("--set", setting))]
SHARDS = ["--set", "sample.shards=16"]
ITERATIONS = Path("artifacts/small/iterations")
DRAWN = ["0000/evaluate", "0001/sample", "0001/evaluate", "0002/sample", "0002/evaluate"]
"""What a run of two iterations draws, in order."""


def trained(folder: Path, *settings: str) -> Path:
    done = run_grpo(folder, "train", SMALL, *VLLM, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / ITERATIONS


def manifest(iterations: Path, place: str) -> Manifest:
    found = read_manifest(iterations / place)
    assert found is not None, place
    return found


def sampler_lives(pid: int) -> bool:
    """Whether the process is there and is a sampler; its number may have been given to another meanwhile."""
    try:
        return "vllm_worker" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def samplers(iterations: Path) -> list[list[int]]:
    """The sampler processes of all that was drawn, in order."""
    return [manifest(iterations, place).notes["engine"]["pids"] for place in DRAWN]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, drawn at once by one engine."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in four shards by two engines."""
    return trained(tmp_path_factory.mktemp("sharded"), "--set", "sample.shards=4", "--set", "sample.engine.engines=2")


def test_shards_and_engines_change_no_byte(whole, sharded):
    for place in DRAWN:
        one, other = (iterations / place / "rollouts.parquet" for iterations in (whole, sharded))
        assert one.read_bytes() == other.read_bytes(), place
    policy = "0002/update/policy/model.safetensors"
    assert (whole / policy).read_bytes() == (sharded / policy).read_bytes()
    assert "shards" not in manifest(whole, "0001/sample").notes
    for place in ("0001/sample", "0002/sample"):
        assert manifest(sharded, place).notes["shards"] == {"all": 4, "kept_from_before": 0}
    assert list(sharded.rglob(".sample.parts")) == []


def test_the_engine_starts_once_a_command_and_is_gone_after_it(whole, sharded):
    """Sampling and evaluation share it too."""
    for iterations, engines in ((whole, 1), (sharded, 2)):
        pids = samplers(iterations)
        assert pids == [pids[0]] * len(DRAWN)
        assert len(set(pids[0])) == engines
        assert not any(sampler_lives(pid) for pid in pids[0])


def test_manifests_say_how_near_the_sampler_is_to_the_trainer(whole):
    for place in ("0001/sample", "0002/sample"):
        found = manifest(whole, place)
        figures = found.notes["fidelity"]
        assert figures["completions"] == 2  # of 64
        assert 2 <= figures["tokens"] <= 2 * 6
        assert 0 <= figures["mean"] <= figures["max"] < 1e-4
        assert 0 <= figures["kl"] < 1e-8
        assert figures["left_out"] == 0
        assert {name: found.metrics[f"fidelity_{name}"] for name in ("mean", "max", "kl")} == {
            name: figures[name] for name in ("mean", "max", "kl")
        }
        assert "warnings" not in found.notes


def test_manifests_name_the_engine_its_version_and_its_settings(whole):
    engine = manifest(whole, "0002/sample").notes["engine"]
    assert (engine["type"], engine["platform"], engine["dtype"]) == ("vllm", "cpu", "float32")
    assert engine["vllm"].startswith("0.32")
    assert (engine["context"], engine["block_size"], engine["threads"]) == (32, 32, 1)
    assert engine["deterministic"] is True
    assert engine["settings"]["kv_cache_memory_bytes"] == 2**28
    assert engine["settings"]["logprobs_mode"] == "processed_logprobs"
    assert engine["settings"]["enforce_eager"] is True


def test_what_vllm_drew_can_be_trained_on_as_if_the_trainer_had_drawn_it(whole):
    """With the sampler's log-probabilities as the old ones, the ratios of a first step are one."""
    for k in (1, 2):
        first = pl.read_parquet(whole / f"{k:04d}/update/steps.parquet").row(0, named=True)
        assert first["ratio_min"] == pytest.approx(1, abs=1e-4)
        assert first["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert first["gradient_norm"] > 0


def test_how_the_work_is_done_may_change_in_a_finished_run_and_what_decides_may_not(whole):
    folder = whole.parents[2]
    other = ["--set", "sample.engine.silence_limit=99", "--set", "sample.shards=5", "--set", "sample.engine.engines=2"]
    done = run_grpo(folder, "train", SMALL, *VLLM, *other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all current. Nothing to do." in " ".join(done.stdout.split())
    refused = run_grpo(folder, "train", SMALL, *VLLM, "--set", "sample.engine.dtype=bfloat16")
    assert refused.returncode == 2
    assert "sample.engine.dtype" in refused.stderr
    assert "float32" in refused.stderr
    assert "bfloat16" in refused.stderr


def parts(folder: Path) -> list[Path]:
    return list((folder / ITERATIONS / "0001/.sample.parts").glob("[!.]*"))


def killed_between_shards(folder: Path) -> list[int]:
    """Trains and kills the command once a shard is kept; its sampler processes. None where all were drawn by then."""
    command = [str(GRPO), "train", str(SMALL), *VLLM, *SHARDS]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not parts(folder):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (folder / ITERATIONS / "0001/sample").exists(), "all shards were drawn before the signal came"
    return manifest(folder / ITERATIONS, "0000/evaluate").notes["engine"]["pids"]


def test_a_kill_loses_the_shard_at_work_and_no_other(whole, tmp_path):
    [pid] = killed_between_shards(tmp_path)
    deadline = time.monotonic() + 60
    while sampler_lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sampler_lives(pid)
    kept = len(parts(tmp_path))
    assert 1 <= kept <= 16

    again = trained(tmp_path, *SHARDS)
    for place in DRAWN:
        assert (again / place / "rollouts.parquet").read_bytes() == (whole / place / "rollouts.parquet").read_bytes()
    assert manifest(again, "0001/sample").notes["shards"] == {"all": 16, "kept_from_before": kept}
    assert manifest(again, "0002/sample").notes["shards"] == {"all": 16, "kept_from_before": 0}
    assert list(again.rglob(".sample.parts")) == []
    assert not any(sampler_lives(pid) for place in DRAWN for pid in manifest(again, place).notes["engine"]["pids"])
