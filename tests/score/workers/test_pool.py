"""The pool of workers: what one item does to its worker is that item's own status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.score.workers.pool import run_limited
from tests.score import worker_functions as work


def marks_of(deeds, seconds=0.5):
    return dict(zip(deeds, run_limited(work.act, deeds, seconds, work.warm), strict=True))


def children():
    """Command lines of this process's children, without the one that Python keeps for shared resources."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1] if folder.name.isdigit() else None
            command = (folder / "cmdline").read_text() if parent == str(os.getpid()) else "resource_tracker"
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "resource_tracker" not in command:
            found.add((folder.name, command))
    return found


def test_items_come_back_in_order():
    marks = run_limited(work.act, [str(i) for i in range(500)], 1.0, work.warm)
    assert [mark.value for mark in marks] == list(range(500))
    assert {mark.status for mark in marks} == {"ok"}


def test_random_numbers_do_not_depend_on_the_worker_or_the_items_before():
    first = run_limited(work.act, ["draw"] * 50, 5.0, work.warm_random)
    assert {mark.status for mark in first} == {"ok"}
    assert len({mark.value for mark in first}) == 1


def test_no_items_start_no_worker():
    assert run_limited(work.act, [], 1.0, work.warm_badly) == []


def test_what_one_item_does_to_its_worker_is_its_own_status_and_leaves_nothing_behind():
    before = children()
    marks = marks_of(
        ["1", "sleep", "2", "spin", "3", "compute", "4", "raise", "5", "leave", "6", "kill", "7", "stuff", "8", "exit"]
    )
    assert {deed: mark.value for deed, mark in marks.items() if mark.status == "ok"} == {
        str(i): float(i) for i in range(1, 9)
    }
    assert {deed: (marks[deed].status, marks[deed].message) for deed in marks if marks[deed].status != "ok"} == {
        "sleep": ("timeout", "no verdict in 0.5 s"),
        "spin": ("timeout", "no verdict in 0.5 s"),
        "compute": ("timeout", "no verdict in 0.5 s"),
        "raise": ("error", "KeyError: 'lost'"),
        "leave": ("error", "the worker died with exit code 0"),
        "kill": ("error", f"the worker died with exit code {-signal.SIGKILL}"),
        "stuff": ("error", "MemoryError: "),
        "exit": ("error", "the worker died with exit code 0"),
    }
    assert children() == before


def test_a_value_that_is_no_finite_number_is_an_error_of_its_row():
    marks = marks_of(["not a number", "infinite", "text", "nothing", "0.25"])
    assert marks["not a number"].message == "the reward is nan"
    assert marks["infinite"].message == "the reward is inf"
    assert [mark.status for mark in marks.values()] == ["error"] * 4 + ["ok"]
    assert [mark.value for mark in marks.values()] == [None] * 4 + [0.25]


def test_a_message_is_cut_and_can_be_stored():
    message = marks_of(["raise a long message"])["raise a long message"].message
    assert message is not None
    assert len(message.encode("utf-8")) <= 300


def test_workers_that_die_at_once_take_no_other_item_with_them():
    marks = run_limited(work.die_at_sevenths, list(range(70)), 1.0, work.warm)
    assert [i for i, mark in enumerate(marks) if mark.status == "error"] == list(range(3, 70, 7))
    assert all(mark.value == i for i, mark in enumerate(marks) if mark.status == "ok")


def test_a_busy_machine_turns_no_right_answer_into_a_timeout():
    # It waits 0.6 s for others with a limit of 0.3 s, but needs next to no processor time of its own.
    assert run_limited(work.busy_then_right, [0.6], 0.3, work.warm)[0].value == 1.0


def test_workers_are_kept_from_item_to_item():
    marks = run_limited(work.process_id, list(range(20)), 1.0, work.warm)
    assert len({mark.value for mark in marks}) <= len(os.sched_getaffinity(0))


def test_workers_that_cannot_get_ready_are_said_at_once_not_tried_for_ever():
    before, start = children(), time.monotonic()
    with pytest.raises(RuntimeError, match="could not be imported: its process ended with exit code 1"):
        run_limited(work.act, ["1", "2", "3"], 1.0, work.warm_badly)
    assert time.monotonic() - start < 30
    assert children() == before


def test_the_imports_are_done_once_and_again_only_where_their_process_was_killed():
    def once():
        return run_limited(work.parent_id, [0, 0, 0], 1.0, work.warm)

    nurseries = [{mark.value for mark in once()} for _ in range(2)]
    assert len(nurseries[0]) == 1
    assert nurseries[0] == nurseries[1]
    os.kill(int(nurseries[0].copy().pop()), signal.SIGKILL)
    assert not {mark.value for mark in once()} & nurseries[0]


def test_every_process_has_the_same_order_of_sets():
    (mark,) = run_limited(work.hash_of, ["a text"], 1.0, work.warm)
    code = "print(float(hash('a text')))"
    wanted = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    )
    assert mark.value == float(wanted.stdout)


def test_workers_end_with_the_process_that_started_them_also_where_it_is_killed(tmp_path):
    notes = [tmp_path / "one", tmp_path / "two"]
    code = (
        "from stages.score.workers.pool import run_limited\n"
        "from tests.score import worker_functions as work\n"
        "if __name__ == '__main__':\n"
        f"    run_limited(work.note_and_spin, {[str(note) for note in notes]}, 60.0, work.warm)\n"
    )
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment) as process:
        wait_until(lambda: any(note.exists() and note.read_text().endswith(".") for note in notes))
        process.kill()
    started = [pid for note in notes if note.exists() for pid in note.read_text().strip(".").split()]
    assert len(started) >= 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def wait_until(event):
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_start_from_a_console_script(tmp_path):
    script = tmp_path / "grpo"  # as pip writes it: no suffix, and it imports the command before it looks who it is
    script.write_text(
        "import sys\n"
        "from flows.cli import main\n"
        "if __name__ == '__main__':\n"
        "    from stages.score.reward_config import MathReward\n"
        "    from stages.score.verdict import Item\n"
        "    from stages.score.rewards import judge\n"
        "    marks = judge(MathReward(type='math'), [Item('1+x', 3, 'algebra', 'x+1', {})] * 3)\n"
        "    print([mark.value for mark in marks])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[1.0, 1.0, 1.0]\n", "")
