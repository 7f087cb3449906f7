"""One writer a run, told by real processes."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from stages.contract.errors import RunInUseError
from stages.contract.lock import run_lock

HOLD = """
import sys
from pathlib import Path
from stages.contract.errors import RunInUseError
from stages.contract.lock import run_lock

print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(Path(sys.argv[1]), say=lambda line: print(line, flush=True)):
        print("won", flush=True)
        sys.stdin.readline()
except RunInUseError as error:
    print(f"refused: {error}", flush=True)
"""


class Writer:
    """A process that takes the lock when told to, and holds it until told to end."""

    def __init__(self, lock: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate(timeout=30)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.end()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def test_a_second_process_is_refused_with_the_pid_of_the_first(lock: Path) -> None:
    first, second = Writer(lock), Writer(lock)
    first.go()
    assert first.line() == "won"
    second.go()
    told = second.line()
    assert told.startswith(f"refused: {lock.parent}: in use by process {first.process.pid} on ")
    second.end()
    first.end()


def test_a_held_run_is_refused_and_a_released_one_is_taken_in_silence(lock: Path) -> None:
    said: list[str] = []
    first = Writer(lock)
    first.go()
    assert first.line() == "won"
    with pytest.raises(RunInUseError, match=f"process {first.process.pid} on "), run_lock(lock, said.append):
        said.append("two writers")
    first.end()
    with run_lock(lock, said.append):
        assert str(os.getpid()) in lock.read_text()
    assert said == []


def test_the_lock_of_a_killed_owner_is_taken_over_and_said_so(lock: Path) -> None:
    first, second = Writer(lock), Writer(lock)
    first.go()
    assert first.line() == "won"
    first.kill()
    second.go()
    took = second.line()
    assert took.startswith(f"took over the lock of process {first.process.pid} on ")
    assert took.endswith(", which is gone")
    assert second.line() == "won"
    second.end()


def test_of_two_at_the_same_instant_exactly_one_wins(lock: Path) -> None:
    for _ in range(3):
        writers = [Writer(lock), Writer(lock)]
        for writer in writers:
            writer.go()
        told = sorted(writer.line() for writer in writers)
        assert told[0].startswith(f"refused: {lock.parent}: in use by ")
        assert told[1] == "won"
        for writer in writers:
            writer.end()


def test_a_block_that_fails_releases_the_run(lock: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), run_lock(lock, said.append):
        raise KeyboardInterrupt
    with run_lock(lock, said.append):
        pass
    assert said == []


@pytest.mark.parametrize("left", [b'{"pid": 1', b"\0\0\0\0", b"\xff", b"null", b"7", b"{}"])
def test_an_unreadable_note_of_a_dead_owner_is_no_obstacle(left: bytes, lock: Path) -> None:
    lock.write_bytes(left)
    said: list[str] = []
    with run_lock(lock, said.append):
        assert str(os.getpid()) in lock.read_text()
    assert said == ["took over the lock of a process that has not written its name yet, which is gone"]


def test_a_lock_that_its_owner_removes_while_another_waits_for_it_is_no_lock(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process has opened the file, the first removes it and ends; a third must not get a lock as well."""
    real = fcntl.flock

    def removed_just_before(file: TextIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        lock.unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    third = Writer(lock)
    with run_lock(lock, lambda line: None):
        third.go()
        assert third.line().startswith(f"refused: {lock.parent}: in use by process {os.getpid()} on ")
    third.end()


RACE = """
import sys
from pathlib import Path
from stages.contract.errors import RunInUseError
from stages.contract.lock import run_lock

for line in sys.stdin:
    try:
        with run_lock(Path(sys.argv[1]), say=lambda line: None):
            print("won", flush=True)
            sys.stdin.readline()
    except RunInUseError as error:
        print("refused", flush=True)
        sys.stdin.readline()
"""


def test_of_many_at_the_same_instant_one_wins_a_hundred_times(lock: Path) -> None:
    command = [sys.executable, "-c", RACE, str(lock)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for _ in range(100):
        for word in ("go", "end"):
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{word}\n")
                racer.stdin.flush()
            if word == "go":
                told = sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout is not None)
                assert told == ["refused", "refused", "refused", "won"]
    for racer in racers:
        racer.communicate(timeout=30)
