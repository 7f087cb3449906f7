"""The recipe of `configs/gsm8k-qwen.yaml`, on what the hub gives: a file for each split, a Qwen2 with its template."""

import json
import string

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.flows.conftest import ROOT, run_grpo

CONFIG = ROOT / "configs" / "gsm8k-qwen.yaml"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALLER = (
    "iterations=1",
    "sample.engine={type: transformers}",
    "sample.prompts=4",
    "sample.sampling.max_tokens=24",
    "score.rewards=[{type: math, extract: boxed}, {type: length, target: 1, limit: 24, weight: 0.1}]",
    "evaluate.prompts=3",
    "hardware={device: cpu, threads: 1}",
)
"""What makes it small; the second reward gives random weights something to differ in."""


def problem(i):
    total = 1000 * i + 7
    solution = f"She had {total - 7:,}.\nThen she bought 7: {total - 7} + 7 = <<{total - 7}+7={total}>>{total:,}.\n"
    return {
        "question": f"Ann had {total - 7:,} beads and bought 7. How many has she?",
        "answer": f"{solution}#### {total:,}",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with `data/gsm8k` and `models/Qwen2.5-0.5B-Instruct`, as the configuration names them."""
    folder = tmp_path_factory.mktemp("gsm8k")
    data = folder / "data" / "gsm8k" / "main"
    data.mkdir(parents=True)
    pl.DataFrame([problem(i) for i in range(12)]).write_parquet(data / "train-00000-of-00001.parquet")
    pl.DataFrame([problem(i) for i in range(9, 14)]).write_parquet(data / "test-00000-of-00001.parquet")
    save_random_qwen2(folder / "models" / "Qwen2.5-0.5B-Instruct")
    return folder


def save_random_qwen2(folder):
    """Qwen2's shape: tied embeddings, shared keys and values, and two end tokens in the generation settings."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *string.printable]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=128,  # beyond the tokenizer's, as Qwen's
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def trained(folder):
    done = run_grpo(folder, "train", CONFIG, *[part for setting in SMALLER for part in ("--set", setting)])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "artifacts" / "gsm8k-qwen" / "iterations"


def test_each_file_gives_its_split_and_no_question_is_on_both_sides(trained):
    train, heldout = (pl.read_parquet(trained / "0000/prompts" / f"{name}.parquet") for name in ("train", "heldout"))
    assert sorted(map(int, train["answer"].str.replace_all(",", ""))) == [1000 * i + 7 for i in range(9)]
    assert sorted(heldout["answer"]) == ["10,007", "11,007", "12,007", "13,007", "9,007"]
    manifest = json.loads((trained / "0000/prompts/manifest.json").read_text())
    assert manifest["dropped"] == {"also held out": 3}
    assert sorted(name.rsplit("/", 1)[-1] for name in manifest["inputs"]) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]


def test_the_model_is_asked_by_its_chat_template_with_the_system_message(trained):
    rollouts = pl.read_parquet(trained / "0001/sample/rollouts.parquet")
    assert rollouts.height == 4 * 8
    assert set(rollouts["task"]) == {"gsm8k"}
    system = "<|im_start|>system\nThink step by step. Put the final answer, a number alone, into \\boxed{}.<|im_end|>\n"
    for prompt in rollouts["prompt"]:
        assert prompt.startswith(f"{system}<|im_start|>user\nAnn had ")
        assert prompt.endswith("beads and bought 7. How many has she?<|im_end|>\n<|im_start|>assistant\n")
    ends = {tokens[-1] for tokens in rollouts.filter(finish_reason="stop")["completion_tokens"].to_list()}
    assert ends and ends <= {0, 2}


def test_it_trains_and_leaves_a_qwen2_with_its_tokenizer(trained):
    steps = pl.read_parquet(trained / "0001/update/steps.parquet")
    assert steps.height == 4
    assert (steps["gradient_norm"] > 0).all()
    before, after = (AutoModelForCausalLM.from_pretrained(trained / f"{k:04d}/update/policy") for k in (0, 1))
    assert isinstance(after, Qwen2ForCausalLM)
    assert not torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert after.lm_head.weight is after.model.embed_tokens.weight
    names = {path.name for path in (trained / "0001/update/policy").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    evaluation = pl.read_parquet(trained / "0000/evaluate/evaluation.parquet")
    assert evaluation["samples"].to_list() == [1, 1, 1]


def test_right_answers_are_known_as_such(folder):
    from flows.config.loading import read_config
    from stages.score.rewards import judge
    from stages.score.verdict import Item

    [reward] = read_config(CONFIG, {}).score.rewards
    said = {
        r"10,000 + 7 = 10,007, so \boxed{10007}": 1.0,
        r"\boxed{10,007}": 1.0,
        r"\boxed{\$10,007.00}": 1.0,
        r"\boxed{10007 \text{ beads}}": 0.0,  # the system message asks for the number alone
        r"\boxed{10000 + 8}": 0.0,
        "10,007": 0.0,
        "#### 10,007": 0.0,
    }
    marks = judge(reward, [Item(text, 9, "gsm8k", "10,007", {}) for text in said])
    assert [mark.value for mark in marks] == list(said.values())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "How many?", "answer": "Seven."}, "prompts.answer_pattern: '#### (.*)' is not found"),
        ({"question": "How many?", "answer": "Seven.\n#### "}, "prompts.answer_pattern: '#### (.*)' is not found"),
        ({"question": " ", "answer": "#### 7"}, "row 1, column 'question': a text"),
        ({"problem": "How many?", "answer": "#### 7"}, "row 1: no column 'question', only ['answer', 'problem']"),
        ({"question": "How many?", "answer": None}, "row 1: no answer in column 'answer'"),
    ],
)
def test_a_file_of_another_shape_is_told_and_leaves_no_run(folder, tmp_path, row, told):
    pl.DataFrame([row], schema_overrides=dict.fromkeys(row, pl.String)).write_parquet(tmp_path / "train.parquet")
    settings = ["--set", f"prompts.source.path={tmp_path / 'train.parquet'}", "--run", "other"]
    done = run_grpo(folder, "train", CONFIG, *settings)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not (folder / "artifacts" / "other").exists()


def test_without_the_data_or_the_model_it_says_where_they_are_wanted(folder, tmp_path):
    done = run_grpo(tmp_path, "train", CONFIG)
    assert done.returncode == 2
    assert "prompts.source.path: nothing at data/gsm8k/main/train-00000-of-00001.parquet" in done.stderr
    (tmp_path / "data").symlink_to(folder / "data")
    done = run_grpo(tmp_path, "train", CONFIG)
    assert "warmstart.model.path: nothing at models/Qwen2.5-0.5B-Instruct" in done.stderr
