"""The starting policy: demonstrations, tuning, and a model taken as it is."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.errors import DataError
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.model.adapter import add_adapter
from stages.model.config import LoraConfig
from stages.model.load import load_model, load_tokenizer, save_policy
from stages.model.logprobs import token_logprobs
from stages.model.prefix_batches import collate
from stages.prompts import stage as prompts_stage
from stages.prompts.config import PromptsConfig
from stages.warmstart import stage as warmstart_stage
from stages.warmstart.config import AnswerDemonstrations, WarmstartConfig
from stages.warmstart.demonstrations import from_answers, from_file
from stages.warmstart.new_model import character_tokenizer, new_model


def prompt_table(answers):
    return tables.frame(
        PROMPTS,
        {
            "prompt_id": [str(i) for i in range(len(answers))],
            "messages": [[{"role": "user", "content": f"question {i}"}] for i in range(len(answers))],
            "format": ["text"] * len(answers),
            "task": ["t"] * len(answers),
            "answer": answers,
            "metadata": ["{}"] * len(answers),
            "source": [None] * len(answers),
            "level": [None] * len(answers),
        },
    )


def test_the_wanted_share_is_right_and_the_others_are_off_by_an_offset():
    prompts = prompt_table([str(10 * i) for i in range(500)])
    config = AnswerDemonstrations(type="answers", correct=0.3, offsets=(-2, 5), per_prompt=4)
    rows = from_answers(prompts, [f"q{i}" for i in range(500)], config, seed=1)
    assert rows.height == 2000
    off = rows["completion"].cast(pl.Int64) - 10 * rows["prompt_id"].cast(pl.Int64)
    assert set(off.to_list()) == {0, -2, 5}
    assert ((off == 0) == rows["correct"]).all()
    # 2,000 draws: the standard error of a share of 0.3 is 0.010, of 0.35 0.011
    assert rows["correct"].mean() == pytest.approx(0.3, abs=0.04)
    assert (off == 5).mean() == pytest.approx(0.35, abs=0.045)


def test_answers_that_are_no_integers_are_refused():
    config = AnswerDemonstrations(type="answers")
    with pytest.raises(DataError, match=r"integer answers, a prompt has '1\.5'"):
        from_answers(prompt_table(["3", "1.5"]), ["a", "b"], config, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no demonstrations"),
        ('{"prompt": "a"}', "row 1: a text is wanted in the column 'completion'"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}', "row 2: .* 'prompt'"),
        ('{"prompt": ', "cannot be read as JSONL"),
        ("[1]", "row 1"),
    ],
)
def test_a_file_of_demonstrations_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "demos.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        from_file(tmp_path / "demos.jsonl", str)


def job(folder):
    return Job(RunPaths(folder / "run"), 0, seed=2)


def run_prompts(folder, rows, **config):
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = {"type": "file", "path": folder / "data.jsonl"}
    prompts_stage.run(job(folder), PromptsConfig(source=source, heldout=0, **config))


def logprob(folder, prompt, completion):
    """Log-probability of a whole completion with its end."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, "cpu")
    ids = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        return float(token_logprobs(model, collate([tokenizer(prompt)["input_ids"]], [ids], [1.0], "cpu"))[0].sum())


def test_tuning_on_a_file_teaches_its_completions_after_the_prompt_as_the_model_sees_it(tmp_path):
    run_prompts(tmp_path, [{"prompt": "x", "answer": "y"}], format="text")
    pairs = [{"prompt": "say a", "completion": "alpha"}, {"prompt": "say b", "completion": "beta"}]
    (tmp_path / "demos.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = {"type": "new", "hidden_size": 64, "intermediate_size": 96, "layers": 1, "heads": 2, "context_length": 32}
    tuning = {
        "demonstrations": {"type": "file", "path": tmp_path / "demos.jsonl"},
        "steps": 120,
        "batch_size": 2,
        "optimizer": {"learning_rate": 0.01},
    }
    warmstart_stage.run(job(tmp_path), WarmstartConfig(model=model, tuning=tuning))
    policy = tmp_path / "run/iterations/0000/update/policy"
    assert logprob(policy, "say a", "alpha") > -0.1
    assert logprob(policy, "say b", "beta") > -0.1
    assert logprob(policy, "say a", "beta") < -3
    steps = pl.read_parquet(tmp_path / "run/iterations/0000/update/supervised_steps.parquet")
    assert steps["step"].to_list() == list(range(1, 121))
    assert steps["loss"][0] > 3
    assert steps["loss"][-1] < 0.1
    assert set(steps["tokens"]) == {len("alpha") + len("beta") + 2}


def test_a_demonstration_that_is_too_long_is_dropped_and_counted(tmp_path):
    run_prompts(tmp_path, [{"prompt": "x", "answer": "y"}], format="text")
    pairs = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b" * 40},
        {"prompt": "é", "completion": "b"},
    ]
    (tmp_path / "demos.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = {"type": "new", "hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 1, "context_length": 32}
    tuning = {"demonstrations": {"type": "file", "path": tmp_path / "demos.jsonl"}, "steps": 1, "batch_size": 1}
    warmstart_stage.run(job(tmp_path), WarmstartConfig(model=model, tuning=tuning))
    manifest = json.loads((tmp_path / "run/iterations/0000/update/manifest.json").read_text())
    assert manifest["dropped"] == {"demonstration without a prompt or longer than 32 tokens": 2}


@pytest.mark.parametrize("template", ["{result}", "answer", "{", "{0}"])
def test_a_template_without_the_answer_is_refused(template):
    with pytest.raises(ValueError, match="answer"):
        AnswerDemonstrations(type="answers", template=template)


def test_a_model_taken_as_it_is_keeps_its_bits_and_its_files(tmp_path, tiny_policy):
    run_prompts(tmp_path, [{"prompt": "x", "answer": "y"}])
    warmstart_stage.run(job(tmp_path), WarmstartConfig(model={"type": "folder", "path": tiny_policy}))
    policy = tmp_path / "run/iterations/0000/update/policy"
    one, other = load_model(tiny_policy, "cpu"), load_model(policy, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert (policy / "tokenizer.json").read_bytes() == (tiny_policy / "tokenizer.json").read_bytes()
    manifest = json.loads((policy.parent / "manifest.json").read_text())
    assert str(tiny_policy / "model.safetensors") in manifest["inputs"]


def test_a_phase_takes_an_adapter_merged_with_its_base(tmp_path, tiny_policy):
    base, adapter = (tmp_path / f"first/iterations/000{k}/update/policy" for k in (0, 3))
    shutil.copytree(tiny_policy, base)
    model = load_model(base, "cpu")
    add_adapter(model, LoraConfig(rank=4, alpha=8), seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 if "lora_B" in name else 0)
    save_policy(model, adapter, base, Path("../../../0000/update/policy"))
    run_prompts(tmp_path, [{"prompt": "x", "answer": "y"}])
    warmstart_stage.run(job(tmp_path), WarmstartConfig(model={"type": "run", "run": "first"}), adapter)
    policy = tmp_path / "run/iterations/0000/update/policy"
    assert sorted(path.name for path in policy.iterdir()) == sorted(path.name for path in base.iterdir())
    ids = torch.tensor([[4, 5, 6, 7]])
    expected, plain, made = (load_model(path, "cpu")(ids).logits for path in (adapter, base, policy))
    assert torch.allclose(made, expected, atol=1e-5)
    assert not torch.allclose(made, plain, atol=1e-2)
    manifest = json.loads((policy.parent / "manifest.json").read_text())
    assert manifest["notes"]["phase"] == {"run": "first", "iteration": 3}
    assert {str(base / "model.safetensors"), str(adapter / "adapter_model.safetensors")} <= manifest["inputs"].keys()


def test_a_tokenizer_of_few_characters_passes_over_the_others():
    tokenizer = character_tokenizer("0123456789+-=")
    assert len(tokenizer) == 15
    ids = tokenizer("4 - 1 + 7 = ?")["input_ids"]
    assert tokenizer.decode(ids) == "4-1+7="


def test_a_new_model_is_decided_by_its_seed_alone():
    config = WarmstartConfig(model={"type": "new", "hidden_size": 64, "heads": 2, "layers": 1}).model
    tokenizer = character_tokenizer(config.characters)
    one, again, other = (new_model(config, tokenizer, seed).lm_head.weight for seed in (1, 1, 2))
    torch.manual_seed(99)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
