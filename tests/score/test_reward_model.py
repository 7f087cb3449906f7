"""The reward of a reward model: each row gets the model's number for its conversation, whatever is judged with it."""

import json
import shutil

import pytest
import torch

from stages.contract.errors import ConfigError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from stages.model.load import save_policy
from stages.model.reward import load_reward_model, starting_reward_model
from stages.reward_model import stage
from stages.reward_model.config import RewardModelConfig
from stages.score.config import ScoreConfig
from stages.score.inputs import with_inputs
from stages.score.reward_config import RewardModelReward
from stages.score.rewards import judge
from stages.score.verdict import Item


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


REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ messages[-1].content }}"
)


def test_a_row_that_its_chat_template_refuses_is_an_error_of_its_own(folder):
    (folder / "chat_template.jinja").write_text(REFUSING)
    plain = Item("2", 1, "t", None, {}, ({"role": "user", "content": "1+1="},))
    marks = judge(RewardModelReward(type="reward_model", path=folder), [item("1+1=", "2"), plain])
    assert [mark.status for mark in marks] == ["error", "ok"]
    assert marks[0].message == "the reward model's chat template refuses the conversation: no system here"


def test_it_judges_in_the_format_that_the_run_trained_it_with(tiny_policy, tmp_path):
    policy = shutil.copytree(tiny_policy, tmp_path / "policy")
    (policy / "chat_template.jinja").write_text(REFUSING)
    rows = [{"prompt": f"{i}=", "chosen": f"{i}", "rejected": f"{i + 1}"} for i in range(4)]
    system = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    rows.append({"prompt": system, "chosen": "2", "rejected": "3"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = {"type": "file", "path": tmp_path / "pairs.jsonl", "heldout": 0}
    paths = RunPaths(tmp_path / "run")

    def resolved(trained, asked):
        config = RewardModelConfig.model_validate({"pairs": pairs, "model": policy, "format": trained})
        stage.run(Job(paths, 0, seed=1), config)
        with open_stage(Job(paths, 1, seed=1), "score", "score", {}) as desk:
            score = ScoreConfig.model_validate({"rewards": [{"type": "reward_model", "format": asked}]})
            return with_inputs(desk, score).rewards[0].format

    assert resolved("text", None) == "text"
    with pytest.raises(ConfigError, match=r"format is chat, but .* was trained with text: leave"):
        resolved("text", "chat")
    assert resolved(None, None) == "chat"
    with pytest.raises(ConfigError, match=r"format is text, but .* was trained with chat"):
        resolved(None, "text")
    manifest = read_manifest(paths.stage(0, "reward_model"))
    assert manifest.dropped == {"refused by the chat template": 1}
