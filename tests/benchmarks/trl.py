"""TRL's side of the comparisons: its `GRPOTrainer` as it is, its steps timed from the callbacks that it offers."""

import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.reward import reward
from tests.benchmarks.side import Figures, Turns
from tests.benchmarks.works import LEARNING_RATE, WORKS, Rollouts, Work, model_folder, questions, rollouts

MICRO_BATCHES = (1, 2, 4, 8, 16)
"""Among which its best one is sought."""
STEPS = 10_000


class Over(Exception):
    """No more steps are asked for."""


def new_trainer(work: Work, micro_batch: int, folder: Path, save: bool = False, rows: int | None = None) -> Any:
    """A trainer whose optimizer step is over `rows` rows (all of the work's), and whose best settings are these."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import GRPOConfig, GRPOTrainer
    source = model_folder(work)
    if work.model is None:
        asked: list[Any] = [[{"role": "user", "content": text}] for text in questions(work)]
    else:
        asked = ["1"] * work.prompts
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=(rows or work.rows) // micro_batch,
        num_generations=work.group,
        max_completion_length=work.tokens,
        max_steps=STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        loss_type="dapo",
        beta=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="steps" if save else "no",
        save_steps=1,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in asked] * 16),
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Stopwatch:
    """Seconds by part of a trainer's step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.add(part, time.perf_counter() - begun)

        return timed

    def add(self, part: str, seconds: float) -> None:
        """Adds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def steps(turns: Turns, trainer: Any) -> None:
    """Trains, a step for each turn; a step is from its beginning to that of the next one, less the saving."""
    from transformers import TrainerCallback

    watch = Stopwatch()
    for part, name in {
        "generate": "_generate_single_turn",
        "rewards": "_calculate_rewards",
        "rollouts": "_generate_and_score_completions",
        "passes": "training_step",
        "save": "_save_checkpoint",
    }.items():
        setattr(trainer, name, watch.of(part, getattr(trainer, name)))

    class Gate(TrainerCallback):  # type: ignore[misc]
        begun: float | None = None
        passed = 0.0

        def __init__(self) -> None:
            self.logs: dict[str, float] = {}

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.begun is not None:
                seconds, parts = time.perf_counter() - self.begun, watch.seconds
                passes = parts["passes"] - parts["rollouts"] + parts["step"]
                told = {"loss": self.logs["loss"], "gradient_norm": self.logs["grad_norm"]}
                told |= {part: parts.get(part, 0.0) for part in ("generate", "rewards", "save")}
                turns.done({"seconds": seconds - told["save"], "passes": passes, **told})
            if not turns.wait():
                raise Over
            watch.seconds.clear()
            self.begun = time.perf_counter()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            self.passed = time.perf_counter()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            watch.add("step", time.perf_counter() - self.passed)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            self.logs = logs

    trainer.add_callback(Gate())
    try:
        trainer.train()
    except Over:
        return


def given(trainer: Any, rows: Rollouts, inputs: Any) -> Figures:
    """What its `_generate_and_score_completions` gives of these rollouts; `inputs` is what it would be asked."""
    import torch

    def padded(lists: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, lists))
        fill = [[trainer._tokenizer.pad_token_id] * (width - len(ids)) for ids in lists]
        none = [[0] * len(part) for part in fill]
        ones = [[1] * len(ids) for ids in lists]
        both = [
            (f + ids, n + o) if side == "left" else (ids + f, o + n)
            for f, ids, n, o in zip(fill, lists, none, ones, strict=True)
        ]
        return torch.tensor([ids for ids, _ in both]), torch.tensor([mask for _, mask in both])

    assert len(inputs) == len(rows.prompts)
    prompt_ids, prompt_mask = padded(rows.prompts, "left")
    completion_ids, completion_mask = padded(rows.completions, "right")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(rows.advantages),
        "num_items_in_batch": completion_mask.sum(),
    }


def update(turns: Turns, work: str, micro_batch: int, rows: int | None = None) -> None:
    """Training steps on the work's rollouts (or the first `rows` of them): nothing is generated."""
    import trl.trainer.grpo_trainer  # noqa: F401 - imported before memory counts

    of = WORKS[work]
    drawn = rollouts(of)
    some = Rollouts(drawn.prompts[:rows], drawn.completions[:rows], drawn.advantages[:rows])
    turns.imported()
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(of, micro_batch, Path(folder), rows=rows)
        trainer._generate_and_score_completions = partial(given, trainer, some)
        steps(turns, trainer)


def iteration(turns: Turns, work: str, micro_batch: int) -> None:
    """Whole steps: generating, rewards, advantages, training, and a checkpoint each, whose seconds are told apart."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(WORKS[work], micro_batch, Path(folder), save=True)
        turns.imported()
        steps(turns, trainer)


def sampling(turns: Turns, work: str) -> None:
    """`model.generate` as the trainer calls it."""
    of = WORKS[work]
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(of, 1, Path(folder))
        turns.imported()
        messages = [row["prompt"] for row in list(trainer.train_dataset)[: of.prompts] for _ in range(of.group)]
        prompts, *_ = trainer._tokenize_prompts(messages)
        while turns.wait():
            begun = time.perf_counter()
            completions, _ = trainer._generate_single_turn(prompts, None, {}, of.group)
            seconds = time.perf_counter() - begun
            turns.done({"seconds": seconds, "tokens": sum(map(len, completions))})
