"""The reward of a reward model: each row gets the model's number for its conversation, whatever is judged with it."""

import pytest
import torch

from stages.model.load import save_policy
from stages.model.reward import load_reward_model, starting_reward_model
from stages.score.mark import Item
from stages.score.reward_config import RewardModelReward
from stages.score.rewards import judge


@pytest.fixture
def folder(tiny_policy, tmp_path):
    made = starting_reward_model(tiny_policy, "cpu")
    with torch.no_grad():
        made.model.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    save_policy(made.model, tmp_path / "model", tiny_policy)
    return tmp_path / "model"


def item(prompt, completion, task="t"):
    messages = ({"role": "system", "content": "Add."}, {"role": "user", "content": prompt})
    return Item(completion, len(completion), task, None, {}, messages)


def test_each_row_gets_the_models_number_in_its_place(folder):
    items = [item(f"{i}+{i}=", str(i) * (1 + i % 5)) for i in range(20)]
    told = []
    reward = RewardModelReward(type="reward_model", path=folder, micro_batch_tokens=64)
    marks = judge(reward, items, progress=lambda done, total: told.append((done, total)))
    model = load_reward_model(folder, "cpu")
    for one, mark in zip(items, marks, strict=True):
        alone = model.rewards([model.tokens([*one.messages, {"role": "assistant", "content": one.completion}])])
        assert mark.value == pytest.approx(alone.item(), abs=1e-5)
    assert len({round(mark.value, 6) for mark in marks}) == 20
    assert told[-1] == (20, 20) and len(told) > 3


def test_a_row_that_it_cannot_see_whole_is_an_error_and_not_a_low_reward(folder):
    reward = RewardModelReward(type="reward_model", path=folder, tasks=("t",))
    items = [item("1+1=", "2"), item("1+1=", "2" * 60), item("1+1=", "2", task="u"), item("1+1=", "")]
    marks = judge(reward, items)
    assert [mark.status for mark in marks] == ["ok", "error", "null", "ok"]
    assert marks[1].message == f"70 tokens; the reward model {folder} sees 1 to 64"
    assert marks[3].value != marks[0].value
