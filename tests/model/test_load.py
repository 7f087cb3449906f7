"""Model folders: what is right loads, what is not is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.contract.errors import ModelError
from stages.model.load import load_model, load_tokenizer, save_policy


@pytest.fixture
def folder(tiny_policy, tmp_path):
    shutil.copytree(tiny_policy, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_policy_has_the_same_bits_and_its_parents_other_files(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "old.bin").write_bytes(b"pickle")
    model = load_model(folder, "cpu")
    save_policy(model, tmp_path / "child", folder)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "child", dtype=torch.float32)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert (tmp_path / "child" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "child").chat_template.startswith("{{ messages")
    assert not (tmp_path / "child" / "old.bin").exists()


def test_the_character_tokenizer_gives_back_what_it_was_given(folder):
    tokenizer = load_tokenizer(folder)
    text = "State: 12 + (3*45) = -6?\n<answer>Zz</answer>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "no folder": (shutil.rmtree, "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "no \\*.safetensors",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "not a whole safetensors file",
    ),
    "wrong shapes": (lambda f: edit_config(f, intermediate_size=64), "cannot be loaded|do not fit"),
    "tensor missing": (lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")), "model.norm.weight"),
    "tensor too many": (lambda f: edit_weights(f, lambda t: t.update(extra=torch.ones(2))), "extra"),
    "unknown architecture": (lambda f: edit_config(f, model_type="nonsense"), "cannot be loaded"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_folder_is_refused_by_name(folder, name):
    spoil, message = BROKEN[name]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder, "cpu")
    assert str(folder) in str(caught.value)


def test_a_folder_without_tokenizer_or_end_token_is_refused(folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": None})
    )
    with pytest.raises(ModelError, match="no eos_token"):
        load_tokenizer(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer.json"):
        load_tokenizer(folder)
