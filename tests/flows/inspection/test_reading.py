"""The commands that read a run, and what the run's own files say."""

import json

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.contract.manifest import read_manifest
from tests.flows.conftest import SMALL, run_grpo


def read_json(folder, *arguments):
    done = run_grpo(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_complete_run_is_left_alone(small_folder):
    before = {path: path.stat().st_mtime_ns for path in (small_folder / "artifacts/small/iterations").rglob("*")}
    done = run_grpo(small_folder, "train", SMALL)
    assert done.returncode == 0
    assert "run small is complete: 3 iterations" in done.stdout
    assert {
        path: path.stat().st_mtime_ns for path in (small_folder / "artifacts/small/iterations").rglob("*")
    } == before


def test_status_has_every_stage_and_the_metrics_that_the_tables_give(small_folder):
    read = read_json(small_folder, "status", "small")
    assert [entry["iteration"] for entry in read["iterations"]] == [0, 1, 2, 3]
    assert list(read["iterations"][0]["stages"]) == ["prompts", "warmstart", "evaluate"]
    assert list(read["iterations"][2]["stages"]) == ["sample", "score", "advantage", "update", "evaluate"]
    for entry in read["iterations"]:
        iteration = small_folder / "artifacts" / "small" / "iterations" / f"{entry['iteration']:04d}"
        assert all(state["status"] == "current" for state in entry["stages"].values())
        evaluation = pl.read_parquet(iteration / "evaluate/evaluation.parquet")
        success = evaluation["successes"].sum() / evaluation["samples"].sum()
        assert entry["metrics"]["heldout_success"] == pytest.approx(success)
        if entry["iteration"]:
            scores = pl.read_parquet(iteration / "score/scores.parquet")
            steps = pl.read_parquet(iteration / "update/steps.parquet")
            weighted = (steps["kl"] * steps["tokens"]).sum() / steps["tokens"].sum()
            assert entry["metrics"]["reward_mean"] == pytest.approx(scores["reward"].mean())
            assert entry["metrics"]["kl"] == pytest.approx(weighted)
            assert entry["metrics"]["entropy"] > 0


def test_status_is_readable_in_a_terminal_of_80_columns(small_folder):
    lines = run_grpo(small_folder, "status", "small").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    [last] = [line for line in lines if line.strip().startswith("3 ")]
    assert last.count("64") >= 3  # rows of sample, score, advantage


def test_show_gives_completions_with_rewards_and_advantages(small_folder):
    best = read_json(small_folder, "show", "small", "--iteration", "2", "--best", "3")
    worst = read_json(small_folder, "show", "small", "--iteration", "2", "--worst", "3")
    rewards = pl.read_parquet(small_folder / "artifacts/small/iterations/0002/score/scores.parquet")["reward"].sort()
    assert [row["reward"] for row in worst["completions"]] == rewards[:3].to_list()
    assert [row["reward"] for row in best["completions"]] == rewards[-3:].to_list()[::-1]
    prompt = best["completions"][0]["prompt_id"]
    group = read_json(small_folder, "show", "small", "--iteration", "2", "--prompt", prompt[:10])["completions"]
    assert [row["sample"] for row in group] == [0, 1, 2, 3]
    assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-5)
    unknown = run_grpo(small_folder, "show", "small", "--prompt", "nowhere")
    assert unknown.returncode == 2
    assert "iteration 3 has no prompt whose id begins with 'nowhere'" in unknown.stderr
    shown = run_grpo(small_folder, "show", "small", "--iteration", "2", "--prompt", prompt).stdout
    assert group[0]["prompt"] in shown
    assert f"answer {group[0]['answer']}" in shown
    assert shown.count("reward ") == 4


def test_sql_asks_all_iterations(small_folder):
    query = """
        select s.iteration, count(*) as n, avg(s.reward) as reward
        from scores s join rollouts r
          on s.iteration = r.iteration and s.prompt_id = r.prompt_id and s.sample = r.sample
        group by s.iteration order by s.iteration
    """
    rows = read_json(small_folder, "sql", "small", query)
    expected = [
        pl.read_parquet(small_folder / f"artifacts/small/iterations/{k:04d}/score/scores.parquet")["reward"].mean()
        for k in (1, 2, 3)
    ]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["n"] for row in rows] == [64] * 3
    assert [row["reward"] for row in rows] == pytest.approx(expected)
    steps = read_json(small_folder, "sql", "small", "select step from steps order by step")
    assert [row["step"] for row in steps] == list(range(1, 13))  # the optimizer's count goes on over iterations


def test_the_policy_is_a_plain_hugging_face_folder(small_folder):
    folder = small_folder / "artifacts/small/iterations/0003/update/policy"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("1 + 2 =", return_tensors="pt")
    prompt = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert ids.shape[1] > prompt["input_ids"].shape[1]
    first = AutoModelForCausalLM.from_pretrained(small_folder / "artifacts/small/iterations/0000/update/policy")
    assert not torch.equal(first.lm_head.weight, model.lm_head.weight)


def test_the_tables_are_plain_parquet_and_fit_together(small_folder):
    iteration = small_folder / "artifacts/small/iterations/0002"
    rollouts = pl.read_parquet(iteration / "sample/rollouts.parquet")
    advantages = pl.read_parquet(iteration / "advantage/advantages.parquet")
    assert rollouts.select("prompt_id", "sample").equals(advantages.select("prompt_id", "sample"))
    assert (rollouts["completion_tokens"].list.len() == advantages["advantages"].list.len()).all()
    tokenizer = AutoTokenizer.from_pretrained(iteration / "update/policy")
    for row in rollouts.head(8).iter_rows(named=True):
        assert tokenizer.decode(row["prompt_tokens"]) == row["prompt"]
        assert tokenizer.decode(row["completion_tokens"], skip_special_tokens=True) == row["completion"]


def test_sampler_and_trainer_agree_to_1e_4(small_folder):
    for k in (1, 2, 3):
        manifest = read_manifest(small_folder / f"artifacts/small/iterations/{k:04d}/update")
        assert manifest is not None
        assert 0 < manifest.metrics["mismatch_max"] < 1e-4


def test_a_manifest_names_what_was_read_written_and_run(small_folder):
    update = read_manifest(small_folder / "artifacts/small/iterations/0002/update")
    sample = read_manifest(small_folder / "artifacts/small/iterations/0002/sample")
    rollouts = sample.outputs["rollouts.parquet"]
    assert update.inputs["iterations/0002/sample/rollouts.parquet"] == rollouts
    assert rollouts.rows == 64
    assert "iterations/0001/update/policy/model.safetensors" in update.inputs
    assert "iterations/0001/update/optimizer.safetensors" in update.inputs
    assert update.config["epochs"] == 2
    assert update.packages["torch"].startswith("2.13.0")
    assert update.device == "cpu"
    assert update.timings["train"] <= update.seconds


def test_held_out_prompts_are_never_trained_on(small_folder):
    iterations = small_folder / "artifacts/small/iterations"
    heldout = set(pl.read_parquet(iterations / "0000/prompts/heldout.parquet")["prompt_id"])
    trained = set(pl.read_parquet(iterations.glob("*/sample/rollouts.parquet").__next__())["prompt_id"])
    evaluated = set(pl.read_parquet(iterations / "0003/evaluate/rollouts.parquet")["prompt_id"])
    assert trained
    assert evaluated <= heldout
    assert not trained & heldout
