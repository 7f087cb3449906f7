"""A watched process: an answer or an error comes back, never silence, and nothing outlives its end."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.contract.errors import EngineError
from stages.sample.watched_process import WatchedProcess, ask

ROOT = Path(__file__).parents[2]
PATH = {"PYTHONPATH": str(ROOT)}
PATIENCE = 60.0


@pytest.fixture
def start():
    started = []

    def one(module="tests.sample.process_modules", **environment):
        started.append(WatchedProcess(module, PATH | environment))
        return started[-1]

    yield one
    for process in started:
        process.close()


def lives(pid):
    """Whether a process runs: one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid):
    deadline = time.monotonic() + PATIENCE
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def test_each_process_answers_its_own_question_and_stays(start):
    processes = [start(), start(), start()]
    for round_ in range(3):
        asked = [{"number": 10 * i + round_} for i in range(3)]
        assert ask(processes, "double", asked, PATIENCE) == [2 * round_, 20 + 2 * round_, 40 + 2 * round_]
    assert ask(processes, "pid", [{}] * 3, PATIENCE) == [process.pid for process in processes]


def test_it_has_the_variables_it_was_given_beside_those_of_this_process(start):
    process = start(GRPO_TEST_COLOUR="blue")
    assert ask([process], "variable", [{"name": "GRPO_TEST_COLOUR"}], PATIENCE) == ["blue"]
    assert ask([process], "variable", [{"name": "PATH"}], PATIENCE) == [os.environ["PATH"]]
    assert "GRPO_TEST_COLOUR" not in os.environ


def test_beats_are_the_sum_over_all_processes(start):
    heard = []
    # Each says how much it has done in all: 1, 2, 5 and 10, 20. Whatever their order, the sums grow up to 5 + 20.
    asked = [{"numbers": [1, 2, 5]}, {"numbers": [10, 20]}]
    assert ask([start(), start()], "count", asked, PATIENCE, heard.append) == [3, 2]
    assert len(heard) == 5
    assert heard == sorted(heard)
    assert set(heard) <= {a + b for a in (0, 1, 2, 5) for b in (0, 10, 20)}
    assert heard[-1] == 25


def test_a_process_that_gives_signs_of_life_may_take_longer_than_the_limit_of_silence(start):
    process = start()
    ask([process], "pid", [{}], PATIENCE)  # it has started
    # 20 beats, 0.2 s apart: four seconds, twice the limit.
    assert ask([process], "count", [{"numbers": [*range(20)], "pause": 0.2}], 2.0) == [20]


def test_what_fails_in_it_is_an_error_here_and_it_can_be_asked_again(start):
    process = start()
    with pytest.raises(EngineError, match=r"the sampler process failed: KeyError: 'lost'"):
        ask([process], "fail", [{"reason": "lost"}], PATIENCE)
    assert ask([process], "double", [{"number": 4}], PATIENCE) == [8]


def test_one_that_exits_is_told_by_its_code_and_last_words(start):
    with pytest.raises(EngineError, match=r"ended with code 7\n    the cat sat\n    on the mat$"):
        ask([start()], "exit", [{"code": 7}], PATIENCE)


def test_one_that_was_killed_before_it_was_asked_is_told_by_its_signal(start):
    process = start()
    os.kill(process.pid, signal.SIGKILL)
    assert gone(process.pid)
    with pytest.raises(EngineError, match=r"was killed by signal 9 \(SIGKILL\)"):
        ask([process], "double", [{"number": 1}], PATIENCE)


def test_a_module_that_cannot_start_says_why(start):
    with pytest.raises(EngineError, match=r"ended with code 1\n.*No module named tests\.sample\.nowhere"):
        ask([start("tests.sample.nowhere")], "pid", [{}], PATIENCE)


def test_one_that_dies_among_others_is_an_error_though_the_others_are_well(start):
    well, ill = start(), start()
    os.kill(ill.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL"):
        ask([well, ill], "count", [{"numbers": [*range(20)], "pause": 0.05}] * 2, PATIENCE)


@pytest.mark.parametrize("command", ["sleep", "stop in the middle"])
def test_silence_is_an_error_also_in_the_middle_of_an_answer(start, command):
    process = start()
    ask([process], "pid", [{}], PATIENCE)
    with pytest.raises(EngineError, match=r"no sign of life for 1 s while it was asked to .*silence_limit"):
        ask([process], command, [{}], 1.0)


def test_one_that_does_not_even_listen_is_an_error_however_much_it_was_asked(start):
    process = start()
    ask([process], "pid", [{}], PATIENCE)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="no sign of life for 1 s"):
        ask([process], "length", [{"data": bytes(2**24)}], 1.0)  # far more than a socket holds


def test_a_long_question_and_a_long_answer_arrive_whole(start):
    numbers = [*range(10**6)]
    assert ask([start()], "double", [{"number": numbers}], PATIENCE) == [numbers * 2]


def test_closing_ends_what_it_has_started_too_and_may_be_done_twice(start):
    process = start()
    [grandchild] = ask([process], "breed", [{}], PATIENCE)
    assert lives(process.pid)
    assert lives(grandchild)
    process.close()
    assert gone(process.pid)
    assert gone(grandchild)
    process.close()


def test_one_that_is_forgotten_ends():
    process = WatchedProcess("tests.sample.process_modules", PATH)
    [grandchild] = ask([process], "breed", [{}], PATIENCE)
    pid = process.pid
    del process
    gc.collect()
    assert gone(pid)
    assert gone(grandchild)


PARENT = """
import sys, time
from stages.sample.watched_process import WatchedProcess, ask
process = WatchedProcess("tests.sample.lifeline_module", {})
print(process.pid, *ask([process], "breed", [{}], 120), flush=True)
"""


@pytest.mark.parametrize("ending", ["time.sleep(3600)", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_it_ends_with_its_parent_however_that_ends(ending):
    """The lifeline is a pipe that the kernel closes: no code of the parent needs to run."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT + ending],
        cwd=ROOT,
        env=os.environ | PATH,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if "sleep" in ending:
            assert all(lives(pid) for pid in pids)
            parent.send_signal(signal.SIGKILL)
    left = [pid for pid in pids if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
