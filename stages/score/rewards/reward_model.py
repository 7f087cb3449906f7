"""The reward of a reward model: one number for a prompt with its completion."""

from collections.abc import Sequence

from stages.contract.errors import DataError
from stages.contract.progress import Progress, no_progress
from stages.score.reward_config import RewardModelReward
from stages.score.verdict import Item, Mark, error, ok


def judge(
    reward: RewardModelReward, items: Sequence[Item], device: str, progress: Progress = no_progress
) -> list[Mark]:
    """The model's number, as it is; an error for a row that its template refuses or that is longer than it can see.

    Raises:
        ModelError: the folder holds no reward model.
    """
    import torch

    from stages.model.microbatches import micro_batches
    from stages.model.reward import load_reward_model

    assert reward.path is not None, "the stage names the run's own"
    model = load_reward_model(reward.path, device, reward.format)
    rows: dict[int, list[int]] = {}
    marks: dict[int, Mark] = {}
    for i, item in enumerate(items):
        try:
            rows[i] = model.tokens([*item.messages, {"role": "assistant", "content": item.completion}])
        except DataError as refusal:
            marks[i] = error(str(refusal))
            continue
        if not 0 < len(rows[i]) <= model.context:
            marks[i] = error(f"{len(rows[i])} tokens; the reward model {reward.path} sees 1 to {model.context}")
    fitting = [i for i in range(len(items)) if i not in marks]
    with torch.no_grad():
        for part in micro_batches([len(rows[i]) for i in fitting], reward.micro_batch_tokens):
            chosen = [fitting[at] for at in part]
            values = model.rewards([rows[i] for i in chosen]).tolist()
            marks |= {i: ok(value) for i, value in zip(chosen, values, strict=True)}
            progress(len(marks), len(items))
    return [marks[i] for i in range(len(items))]
