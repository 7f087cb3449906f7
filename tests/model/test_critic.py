"""The critic: a policy's body, a head of zeros, values of the states before the tokens."""

import json

import pytest
import torch
from transformers import AutoModelForTokenClassification

from stages.contract.errors import ModelError
from stages.model.critic import load_critic, save_critic, starting_critic, token_values
from stages.model.load import load_model
from stages.model.prefix_batches import collate

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
COMPLETIONS = [[20, 21, 1], [30], [40, 41, 42, 43, 44]]


def batch(prompts=PROMPTS, completions=COMPLETIONS):
    return collate(prompts, completions, [1.0] * len(prompts), "cpu")


def taught(tiny_policy):
    """A critic whose head is no longer 0."""
    critic = starting_critic(tiny_policy, "cpu")
    with torch.no_grad():
        critic.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    return critic


def test_the_starting_critic_has_the_policys_body_and_gives_zeros(tiny_policy):
    critic, policy = starting_critic(tiny_policy, "cpu"), load_model(tiny_policy, "cpu")
    assert torch.equal(token_values(critic, batch()), torch.zeros(9))
    mine, theirs = critic.base_model.state_dict(), policy.base_model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not critic.training


def test_a_value_has_seen_what_comes_before_its_token_and_nothing_after(tiny_policy):
    critic = taught(tiny_policy)
    values = token_values(critic, batch()).split([3, 1, 5])
    for prompt, completion, got in zip(PROMPTS, COMPLETIONS, values, strict=True):
        for t in range(len(completion)):
            state = torch.tensor([prompt + completion[:t]])
            alone = critic(input_ids=state).logits[0, -1, 0]
            torch.testing.assert_close(got[t], alone, atol=1e-5, rtol=0)
    changed = [[*row[:-1], 60] for row in COMPLETIONS]
    torch.testing.assert_close(token_values(critic, batch(completions=changed)), torch.cat(values), atol=1e-5, rtol=0)


def test_a_critic_goes_through_a_plain_folder(tiny_policy, tmp_path):
    critic = taught(tiny_policy)
    save_critic(critic, tmp_path / "critic")
    assert {path.suffix for path in (tmp_path / "critic").iterdir()} == {".json", ".safetensors"}
    for again in (load_critic(tmp_path / "critic", "cpu"), starting_critic(tmp_path / "critic", "cpu")):
        assert torch.equal(token_values(again, batch()), token_values(critic, batch()))
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    assert torch.equal(token_values(plain, batch()), token_values(critic, batch()))


def test_what_is_no_critic_is_refused(tiny_policy, tmp_path):
    with pytest.raises(ModelError, match=r"is no critic: config\.json names no model ForTokenClassification"):
        load_critic(tiny_policy, "cpu")
    config = json.loads((tiny_policy / "config.json").read_text())
    two = AutoModelForTokenClassification.from_pretrained(tiny_policy, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    assert config["architectures"] == ["LlamaForCausalLM"]
    with pytest.raises(ModelError, match="gives 2 numbers; a critic gives 1"):
        load_critic(tmp_path / "two", "cpu")
    with pytest.raises(ModelError, match=r"no config\.json"):
        starting_critic(tmp_path / "nowhere", "cpu")
