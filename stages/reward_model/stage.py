"""The stage `reward_model`: preferences, a model → the reward model, in iteration 0."""

from collections.abc import Sequence
from contextlib import suppress
from typing import assert_never

from stages.contract import tables
from stages.contract.columns import PREFERENCE_STEPS, PREFERENCES, PROMPTS
from stages.contract.config import deciding
from stages.contract.errors import DataError
from stages.contract.seeds import derive
from stages.contract.workspace import Job, Workspace, open_stage
from stages.model.load import save_policy
from stages.model.reward import RewardModel, starting_reward_model
from stages.reward_model.config import AnswerPairs, FilePairs, RewardModelConfig
from stages.reward_model.pairs import Pair, from_answers, from_file, is_heldout
from stages.reward_model.train import Tokens, figures_of, judged, last_epoch, train


def run(job: Job, config: RewardModelConfig) -> None:
    """Trains the reward model, and measures it on held-out pairs."""
    folder = config.model or job.paths.policy(0)
    with open_stage(job, "reward_model", "reward_model", deciding(config)) as desk:
        with desk.timed("load"):
            desk.take_folder(folder)
            model = starting_reward_model(folder, job.device, config.format)
            desk.notes["format"] = model.kind  # in which its rewards are asked for, too
        found, found_heldout = _pairs(job, desk, config, plain=model.kind == "text")
        pairs, heldout = _usable(desk, model, found), _usable(desk, model, found_heldout)
        if not pairs:
            raise DataError(f"reward_model.pairs: none of {len(found)} pairs is left to train on: {desk.dropped}")
        with desk.timed("train"):
            seed = derive(job.seed, "reward_model")
            steps = train(model, list(pairs.values()), config, seed, job.progress)
        with desk.timed("heldout"):
            chosen, rejected = judged(model, list(heldout.values()), config.micro_batch_tokens)
        with desk.timed("save"):
            save_policy(model.model, desk.folder / "model", folder)
        read = [found[i] for i in pairs], [found_heldout[i] for i in heldout]
        _write(desk, model, *read, chosen, rejected)
        columns = {field.name: [step[field.name] for step in steps] for field in PREFERENCE_STEPS.fields}
        desk.write("preference_steps.parquet", tables.frame(PREFERENCE_STEPS, columns), PREFERENCE_STEPS)
        desk.metrics |= last_epoch(steps, len(pairs))
        desk.metrics |= {f"heldout_{name}": value for name, value in figures_of(chosen, rejected).items()}
        desk.metrics |= {"pairs": len(pairs), "heldout_pairs": len(heldout), "optimizer_steps": len(steps)}


def _pairs(job: Job, desk: Workspace, config: RewardModelConfig, plain: bool) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and held-out ones."""
    match config.pairs:
        case FilePairs(path=path, heldout=share):
            pairs = from_file(path, plain)
            desk.take(path)
            held = [is_heldout(pair, share) for pair in pairs]
            train, heldout = ([pair for pair, out in zip(pairs, held, strict=True) if out == side] for side in (0, 1))
            return train, heldout
        case AnswerPairs() as made:
            folder = job.paths.stage(0, "prompts")
            train_prompts, heldout_prompts = (desk.read(folder / f"{n}.parquet", PROMPTS) for n in ("train", "heldout"))
            seed = derive(job.seed, "pairs")
            return from_answers(train_prompts, made, seed), from_answers(heldout_prompts, made, derive(seed, "heldout"))
        case _:
            assert_never(config.pairs)


def _usable(desk: Workspace, model: RewardModel, pairs: Sequence[Pair]) -> dict[int, Tokens]:
    """The pairs that teach something and that the model can see whole, by their places; the others are counted."""
    different = {i: pair for i, pair in enumerate(pairs) if pair.chosen != pair.rejected}
    desk.drop("chosen is rejected too", len(pairs) - len(different))
    read: dict[int, Tokens] = {}
    for i, pair in different.items():
        with suppress(DataError):
            read[i] = (model.tokens(pair.chosen), model.tokens(pair.rejected))
    desk.drop("refused by the chat template", len(different) - len(read))
    fitting = {i: sides for i, sides in read.items() if all(0 < len(side) <= model.context for side in sides)}
    desk.drop(f"pair without tokens or longer than {model.context}", len(read) - len(fitting))
    return fitting


def _write(
    desk: Workspace,
    model: RewardModel,
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    chosen: Sequence[float],
    rejected: Sequence[float],
) -> None:
    """Writes the pairs as the model read them, with the trained model's rewards of those held out."""
    both, nothing = [*pairs, *heldout], [None] * len(pairs)
    columns = {
        "pair": list(range(len(both))),
        "heldout": [False] * len(pairs) + [True] * len(heldout),
        "chosen": [model.text(pair.chosen) for pair in both],
        "rejected": [model.text(pair.rejected) for pair in both],
        "chosen_reward": [*nothing, *chosen],
        "rejected_reward": [*nothing, *rejected],
    }
    desk.write("preferences.parquet", tables.frame(PREFERENCES, columns), PREFERENCES)
