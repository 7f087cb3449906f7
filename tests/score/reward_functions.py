"""Reward functions as users write them: in TRL's form, in open-r1's, in verl's, and ones that go wrong."""

import asyncio
import os
import re
import subprocess
import sys
import time

import numpy as np

CALLS = []


def format_reward(completions, **kwargs):
    """A form of tags, of the first message's content."""
    pattern = r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
    return [float(bool(re.match(pattern, completion[0]["content"], re.DOTALL))) for completion in completions]


def accuracy_reward(completions, solution, **kwargs):
    """None where the right answer cannot be read."""
    said = [completion[0]["content"].rpartition("\\boxed{")[2].rstrip("}$") for completion in completions]
    return [float(s == right) if right.isdecimal() else None for s, right in zip(said, solution, strict=True)]


def len_reward(completions, solution, **kwargs) -> float:
    """Shorter is better among those of the call, and what is wrong is never rewarded (Kimi 1.5)."""
    contents = [completion[0]["content"] for completion in completions]
    shortest, longest = min(map(len, contents)), max(map(len, contents))
    if shortest == longest:
        return [0.0] * len(contents)
    out = []
    for content, right in zip(contents, solution, strict=True):
        value = 0.5 - (len(content) - shortest) / (longest - shortest)
        out.append(value if right in content else min(0, value))
    return out


def get_repetition_penalty_reward(ngram_size: int, max_penalty: float):
    """A function that is made by another."""
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty} should not be positive")

    def repetition_penalty_reward(completions, **kwargs):
        rewards = []
        for completion in completions:
            words = completion[0]["content"].lower().split()
            ngrams = [tuple(words[i : i + ngram_size]) for i in range(len(words) - ngram_size + 1)]
            rewards.append((1 - len(set(ngrams)) / len(ngrams)) * max_penalty if ngrams else 0.0)
        return rewards

    return repetition_penalty_reward


class Longer:
    """An object that can be called, and keeps its own name."""

    __name__ = "longer"

    async def __call__(self, prompts, completions, completion_ids, trainer_state, log_metric, **columns):
        await asyncio.sleep(0)
        log_metric("tokens", np.float32(np.mean([len(ids) for ids in completion_ids])))
        return np.array([len(ids) + 100 * trainer_state.global_step for ids in completion_ids])


longer = Longer()


def seen(prompts, completions, completion_ids, level, unit, answer, log_extra, **kwargs):
    """Logs all that it is given."""
    log_extra("prompt", prompts)
    log_extra("level", level)
    log_extra("unit", unit)
    log_extra("others", [sorted(kwargs)] * len(prompts))
    return [float(a or 0) for a in answer]


def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    """verl's form; some give a dictionary."""
    right = float(ground_truth in solution_str)
    return {"score": right + bonus, "acc": bool(right), "source": data_source, "index": extra_info["index"]}


def misbehaving(completions, **kwargs):  # noqa: PLR0911
    """Does what its only completion says."""
    print("this is no part of what the command says")
    match completions[0]:
        case "raises":
            raise ValueError("no \ud800 such answer")
        case "exits":
            sys.exit(3)
        case "dies":
            os._exit(9)
        case "hangs":
            subprocess.Popen(["sleep", "300.25"])
            time.sleep(300)
        case "too few":
            return []
        case "no list":
            return 0.5
        case "text":
            return "1"
        case "a text":
            return ["1.0"]
        case "nan":
            return [float("nan")]
        case "an object":
            return [object()]
        case "asks":
            input()
        case "does not apply":
            return [None]
    CALLS.append(completions[0])
    return [len(CALLS)]
