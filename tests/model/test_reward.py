"""Reward models: what they read, what they give, and folders that hold none."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from stages.contract.errors import ConfigError, ModelError
from stages.model.load import save_policy
from stages.model.reward import load_reward_model, starting_reward_model

TALK = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
LONGER = [{"role": "user", "content": "12+34="}, {"role": "assistant", "content": "46, as I said"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
)


def taught(policy, folder, pad=None, template=None):
    """A reward model's folder whose head is no longer 0."""
    made = starting_reward_model(policy, "cpu")
    with torch.no_grad():
        made.model.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    save_policy(made.model, folder, policy)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def changed(folder, name, **values):
    """Writes values into one of a folder's JSON files; None removes."""
    data = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_the_starting_one_has_the_policys_body_and_gives_zeros(tiny_policy):
    made = starting_reward_model(tiny_policy, "cpu")
    assert made.rewards([made.tokens(TALK), made.tokens(LONGER)]).tolist() == [0, 0]
    assert made.model.config.pad_token_id == made.tokenizer.pad_token_id


def test_a_row_gets_the_same_alone_in_a_batch_and_by_transformers_itself(tiny_policy, tmp_path):
    folder = taught(tiny_policy, tmp_path / "model")
    made = load_reward_model(folder, "cpu")
    rows = [made.tokens(talk) for talk in (TALK, LONGER)]
    assert len(rows[0]) < len(rows[1])
    together = made.rewards(rows).tolist()
    assert together[0] != pytest.approx(together[1], abs=0.01)
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for talk, row, got in zip((TALK, LONGER), rows, together, strict=True):
        assert made.rewards([row]).item() == pytest.approx(got, abs=1e-5)
        text = talk[0]["content"] + talk[1]["content"] + tokenizer.eos_token
        assert plain(**tokenizer(text, return_tensors="pt")).logits.item() == pytest.approx(got, abs=1e-5)


def test_messages_become_text_by_the_folders_own_template_where_it_has_one(tiny_policy, tmp_path):
    made = load_reward_model(taught(tiny_policy, tmp_path / "chat", template=TEMPLATE), "cpu")
    assert made.text(TALK) == "[user]1+1=[assistant]2"
    assert made.tokenizer.decode(made.tokens(TALK)) == "[user]1+1=[assistant]2"
    plain = load_reward_model(tmp_path / "chat", "cpu", "text")
    assert plain.text(TALK) == "1+1=2<|end|>"
    assert plain.text([{"role": "system", "content": "Add."}, *TALK]) == "Add.\n1+1=2<|end|>"
    assert plain.tokens(TALK)[-1] == plain.tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="format is chat, but its tokenizer has no chat template"):
        load_reward_model(taught(tiny_policy, tmp_path / "plain"), "cpu", "chat")


def test_rows_are_padded_with_what_the_model_or_its_tokenizer_names(tiny_policy, tmp_path):
    folder = taught(tiny_policy, tmp_path / "model")
    before = load_reward_model(folder, "cpu")
    rows = [before.tokens(TALK), before.tokens(LONGER)]
    changed(folder, "config.json", pad_token_id=None)
    assert load_reward_model(folder, "cpu").rewards(rows).tolist() == before.rewards(rows).tolist()
    changed(folder, "tokenizer_config.json", pad_token=None)
    with pytest.raises(
        ModelError, match=r"neither config\.json nor the tokenizer names a pad token: set `pad_token_id`"
    ):
        load_reward_model(folder, "cpu")
    started = starting_reward_model(
        folder, "cpu"
    )  # before a training, the end token will do: it is kept with the model
    assert started.model.config.pad_token_id == started.tokenizer.eos_token_id


def test_folders_that_hold_no_reward_model_are_refused_in_one_sentence(tiny_policy, tmp_path):
    folder = taught(tiny_policy, tmp_path / "model")

    def refused(name, message):
        with pytest.raises(ModelError, match=message):
            load_reward_model(tmp_path / name, "cpu")

    def copy(name):
        return shutil.copytree(folder, tmp_path / name)

    shutil.copytree(tiny_policy, tmp_path / "policy")
    refused("policy", r"is no reward model: config\.json names no model ForSequenceClassification")
    two = AutoConfig.from_pretrained(folder, num_labels=2)
    AutoModelForSequenceClassification.from_config(two).save_pretrained(copy("labels"))
    refused("labels", "gives 2 numbers; a reward model gives 1")
    (copy("pickle") / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    refused("pickle", "no .*safetensors; weights in other formats are not loaded")
    for path in copy("mute").glob("tokenizer*"):
        path.unlink()
    refused("mute", "no tokenizer")
    (copy("cut") / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    refused("cut", "not a whole safetensors file")
    refused("nowhere", r"no config\.json")
