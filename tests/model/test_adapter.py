"""Adapters on a real model: nothing at first, then what was trained, merged or not."""

import json
import shutil

import pytest
import torch

from stages.contract.errors import ConfigError, ModelError
from stages.contract.policy import base_of
from stages.model.adapter import add_adapter, is_adapted, merge_adapter, rank_of, save_adapter
from stages.model.config import LoraConfig
from stages.model.load import load_model

IDS = torch.tensor([[4, 5, 6, 7, 8]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def trained(tiny_policy):
    """The tiny model with an adapter that changes something."""
    model = load_model(tiny_policy, "cpu")
    add_adapter(model, LoraConfig(rank=4, alpha=8), seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


@pytest.fixture
def folder(trained, tiny_policy, tmp_path):
    """A base model and its adapter side by side, as a run holds them."""
    shutil.copytree(tiny_policy, tmp_path / "0000")
    save_adapter(trained, tmp_path / "0001", "../0000")
    return tmp_path / "0001"


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    before = logits(model)
    add_adapter(model, LoraConfig(rank=4), seed=3)
    assert torch.equal(logits(model), before)
    learns = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in learns)
    # a layer of 64 and 96: q, k, v, o have 4·(64+64) each, gate, up and down 4·(64+96) each; two layers
    assert sum(learns.values()) == 2 * (4 * 4 * 128 + 3 * 4 * 160)


def test_the_seed_decides_the_first_weights_and_nothing_else_is_drawn(tiny_policy):
    def first(seed):
        model = load_model(tiny_policy, "cpu")
        add_adapter(model, LoraConfig(rank=4), seed)
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one = first(3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, first(3))
    assert not torch.equal(one, first(4))


def test_it_comes_back_from_its_folder_bit_for_bit(trained, folder):
    assert base_of(folder) == folder.parent / "0000"
    assert rank_of(folder) == 4
    loaded = load_model(folder, "cpu")
    assert is_adapted(loaded)
    assert torch.equal(logits(loaded), logits(trained))
    assert any(p.requires_grad for p in loaded.parameters())


def test_the_run_may_be_moved(folder, trained, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("0000", "0001"):
        (folder.parent / name).rename(moved / name)
    assert torch.equal(logits(load_model(moved / "0001", "cpu")), logits(trained))


def test_merged_it_is_the_base_plus_scaled_products(folder, tiny_policy):
    merged = load_model(folder, "cpu")
    name = "model.layers.1.mlp.up_proj"
    layer = merged.get_submodule(name)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    before = logits(merged)
    merge_adapter(merged)
    base = load_model(tiny_policy, "cpu").get_submodule(name).weight.detach()
    assert torch.allclose(merged.get_submodule(name).weight, base + 8 / 4 * b @ a, atol=1e-6)
    assert not is_adapted(merged)
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in load_model(tiny_policy, "cpu").named_parameters()
    ]
    assert torch.allclose(logits(merged), before, atol=1e-5)


def test_peft_itself_reads_it(folder, trained, tiny_policy):
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(load_model(tiny_policy, "cpu"), str(folder))
    assert torch.equal(logits(loaded), logits(trained))


def test_layers_that_the_model_does_not_have(tiny_policy):
    with pytest.raises(ConfigError, match=r"update.lora.targets: \('query',\)"):
        add_adapter(load_model(tiny_policy, "cpu"), LoraConfig(targets=("query",)), seed=3)


@pytest.mark.parametrize("how", ["tensor missing", "another rank", "no base", "damaged"])
def test_an_adapter_that_is_not_whole_or_does_not_fit(folder, how):
    settings = json.loads((folder / "adapter_config.json").read_text())
    if how == "tensor missing":
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "adapter_model.safetensors")
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, folder / "adapter_model.safetensors")
    elif how == "another rank":
        settings["r"] = 8
    elif how == "no base":
        del settings["base_model_name_or_path"]
    (folder / "adapter_config.json").write_text("{" if how == "damaged" else json.dumps(settings))
    with pytest.raises(ModelError, match=r"does not fit|not the configuration of an adapter"):
        load_model(folder, "cpu")
