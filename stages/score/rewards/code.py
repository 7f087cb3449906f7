"""Reward for programs: the share of the prompt's tests that the completion's program passes in the sandbox.

A program that is wrong, crashes, takes too much memory or processor time, or prints without end has failed its test:
that is a verdict, and its status is `ok`. `timeout` is a test that ended on the clock without having used its processor
time: it slept, or the machine was too busy to tell. `error` is the sandbox's own failure.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stages.contract.errors import DataError
from stages.contract.progress import Progress, no_progress
from stages.score.answers.unit_tests import Test, asked, passes, read_tests, source
from stages.score.reward_config import CodeReward
from stages.score.sandbox.limits import MIB, Limits
from stages.score.sandbox.sandbox import Sandbox, open_sandbox
from stages.score.verdict import Item, Mark, error, ok, timeout


def judge(reward: CodeReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """The share of tests passed, or 1 where all are; 0 where the completion holds no program.

    Raises:
        ConfigError: the sandbox does not work on this host.
        DataError: a prompt without tests, or with tests that cannot be read.
    """
    if not items:
        return []
    tests: dict[str, list[Test]] = {}
    for item in items:
        tests[_key(item)] = tests.get(_key(item)) or read_tests(_tests(reward, item), f"prompt {item.prompt_id}")
    with open_sandbox(reward.mode, limits(reward)) as sandbox:
        return sandbox.each(lambda item: _mark(reward, item, tests[_key(item)], sandbox), items, progress)


def check_sandbox(reward: CodeReward) -> None:
    """Raises a `ConfigError` where the sandbox does not work on this host."""
    with open_sandbox(reward.mode, limits(reward)):
        pass


def limits(reward: CodeReward) -> Limits:
    """What a program may take for one test."""
    return Limits(
        cpu=reward.seconds,
        wall=reward.wall_seconds,
        memory=reward.memory_mib * MIB,
        processes=reward.processes,
        files=reward.files_mib * MIB,
    )


def _key(item: Item) -> str:
    return item.prompt_id or str(id(item))


def _tests(reward: CodeReward, item: Item) -> Any:
    if reward.tests is not None and reward.tests not in item.metadata:
        raise DataError(
            f"prompt {item.prompt_id}: no column {reward.tests!r}, in which the reward code looks for tests: set its "
            "`tests`, or its `tasks`"
        )
    if reward.tests is None and item.answer is None:
        raise DataError(
            f"prompt {item.prompt_id}: the reward code needs tests, as the prompt's answer (prompts.source."
            "answer_field) or in a column that its `tests` names"
        )
    return item.answer if reward.tests is None else item.metadata[reward.tests]


def _mark(reward: CodeReward, item: Item, tests: Sequence[Test], sandbox: Sandbox) -> Mark:
    """Runs test after test; one that took all its processor time, or failed where all must pass, is the last."""
    program = source(item.completion, reward.language)
    if program is None:
        return replace(ok(0.0), note=json.dumps({"passed": 0, "tests": len(tests), "first": "no program"}))
    passed, first = 0, None
    for test in tests:
        outcome = sandbox.run(*asked(program, test))
        if outcome.end == "failure":
            said = outcome.stderr.decode("utf-8", "replace").strip()[-200:]
            return error(f"the sandbox failed: {said or f'exit code {outcome.code}'}")
        if outcome.end == "wall":
            return timeout(reward.wall_seconds)
        right = outcome.succeeded and passes(test, outcome.stdout, reward.tolerance)
        passed += right
        if not right:
            how = outcome.end if outcome.end != "exit" else "crashed" if outcome.code else "wrong"
            first = first or how
            if outcome.end == "cpu" or reward.credit == "all":
                break
    value = passed / len(tests) if reward.credit == "fraction" else float(passed == len(tests))
    return replace(ok(value), note=json.dumps({"passed": passed, "tests": len(tests), "first": first}))
