"""A function of the user's own, with the signature of TRL's reward functions or of verl's `compute_score`.

It runs in a process of its own, which ends with this one, and is ended and started anew where a call takes too long.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from multiprocessing import Pipe
from typing import Any

from stages.contract.errors import ConfigError
from stages.contract.progress import Progress, no_progress
from stages.score.reward_config import PythonReward
from stages.score.verdict import Item, Mark, error, null, ok, timeout
from stages.score.workers.function_lookup import located, search_path

READY = 300.0
"""Seconds in which the function has to be imported."""
GIVE_UP = 5
"""Prompts in a row of which every call ran out of time or killed its process, after which no more calls are made."""
OWN = ("prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Arguments that no column of the prompts takes the place of."""


def judge(reward: PythonReward, items: Sequence[Item], iteration: int, progress: Progress = no_progress) -> list[Mark]:
    """What the function says of each item; a call that fails fails all its items.

    Raises:
        ConfigError: there is no such function, or it cannot be imported.
    """
    marks: list[Mark] = []
    silent: set[str] = set()
    process, lost, answered, given_up = None, 0, 0, null()
    try:
        for some in calls(reward, items):
            # Completions that hang a function come in groups; that it hangs by itself shows in prompts, and in most.
            if len(silent) < GIVE_UP or lost <= answered:
                process = process or _Process(reward)
                marks += process.marks(some, iteration)
                if process.ended:
                    process, lost = None, lost + 1
                    silent.add(some[0].prompt_id)
                    given_up = error(
                        f"not called, after all calls of {len(silent)} prompts in a row failed, the last one: "
                        f"{marks[-1].message}"
                    )
                else:
                    answered += 1
                    silent.clear()
            else:
                marks += [given_up] * len(some)
            progress(len(marks), len(items))
    finally:
        if process is not None:
            process.end()
    return marks


def calls(reward: PythonReward, items: Sequence[Item]) -> Iterator[list[Item]]:
    """The items that are given to the function at once."""
    if reward.signature == "verl" or reward.at_once == "row":
        yield from ([item] for item in items)
    elif reward.at_once == "group":
        yield from (list(group) for _, group in groupby(items, lambda item: item.prompt_id))
    elif items:
        yield list(items)


def trl_arguments(reward: PythonReward, items: Sequence[Item]) -> dict[str, Any]:
    """What TRL's trainer gives a reward function, but for its own state: a list for each argument."""
    chats = [item.conversational if reward.conversational is None else reward.conversational for item in items]
    rows = [_columns(reward, item) for item in items]
    names = dict.fromkeys(name for row in rows for name in row if name not in OWN)
    return {name: [row.get(name) for row in rows] for name in names} | {
        "prompts": [
            list(item.messages) if chat else "\n".join(message["content"] for message in item.messages)
            for item, chat in zip(items, chats, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": item.completion}] if chat else item.completion
            for item, chat in zip(items, chats, strict=True)
        ],
        "completion_ids": [list(item.token_ids) for item in items],
    }


def verl_arguments(item: Item) -> dict[str, Any]:
    """What verl gives `compute_score`."""
    truth = item.metadata.get("reward_model")
    return {
        "data_source": item.metadata.get("data_source", item.task),
        "solution_str": item.completion,
        "ground_truth": truth["ground_truth"] if isinstance(truth, dict) and "ground_truth" in truth else item.answer,
        "extra_info": item.metadata.get("extra_info", item.metadata),
    }


def _columns(reward: PythonReward, item: Item) -> dict[str, Any]:
    return dict.fromkeys(reward.answer_names, item.answer) | {"task": item.task} | item.metadata


class _Process:
    """A process that holds the function."""

    def __init__(self, reward: PythonReward) -> None:
        place = located(reward.function)
        self.reward, self.ended = reward, False
        self.pipe, theirs = Pipe()
        dies, self.lives = os.pipe()
        self.process = subprocess.Popen(
            # -P: no module beside the user's own takes the place of one that the process is made of
            # -u: what it prints is there even where it is killed
            [sys.executable, "-P", "-u", "-m", "stages.score.workers.user_function", str(theirs.fileno()), str(dies)],
            env=os.environ | {"PYTHONHASHSEED": "0"},  # an order of sets that is the same each time
            pass_fds=(theirs.fileno(), dies),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what it prints is no part of what the command says
            start_new_session=True,
        )
        theirs.close()
        os.close(dies)
        task = {name: getattr(reward, name) for name in ("make", "arguments", "signature")}
        task |= {"file": str(place.file), "module": place.module, "name": place.name, "path": search_path()}
        ready = self._ask(task, READY)
        if isinstance(ready, Mark) or "failed" in ready:
            self.end()
            why = ready.message if isinstance(ready, Mark) else ready["failed"]
            raise ConfigError(f"the reward function {reward.function} cannot be had: {why}")

    def marks(self, items: Sequence[Item], iteration: int) -> list[Mark]:
        """The function's word on the items; where it has ended the process, each has the same mark."""
        if self.reward.signature == "verl":
            call: dict[str, Any] = {"given": verl_arguments(items[0])}
        else:
            given = trl_arguments(self.reward, items)
            call = {"given": given, "rows": len(items), "iteration": iteration}
        answer = self._ask(call, self.reward.timeout)
        if isinstance(answer, Mark):
            self.end()
            return [answer] * len(items)
        if "failed" in answer:
            return [error(answer["failed"])] * len(items)
        return [
            _mark(value, problem, note)
            for (value, problem), note in zip(answer["values"], answer["notes"], strict=True)
        ]

    def end(self) -> None:
        """Ends the process and all it has started."""
        self.ended = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        os.close(self.lives)

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | Mark:
        """Its answer, or the mark of a process that is late or has died."""
        with suppress(OSError):  # it has died: there is no answer either
            self.pipe.send_bytes(json.dumps(question, default=str).encode())
        try:
            if not self.pipe.poll(seconds):
                return timeout(seconds)
            answer: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            code = self.process.poll()
            died = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            return error(f"the function's process ended {died}")
        return answer


def _mark(value: float | None, problem: str | None, note: dict[str, Any]) -> Mark:
    mark = error(problem) if problem is not None else null() if value is None else ok(value)
    return replace(mark, note=json.dumps(note, sort_keys=True)) if note else mark
