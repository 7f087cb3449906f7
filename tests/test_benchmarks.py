"""The benchmarks can be run: the one of advantages in small, which checks its loops' numbers against the methods'."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import RESULTS, fast, ours, overhead, trl
from tests.benchmarks.__main__ import PARTS, README
from tests.benchmarks.methods import LEVEL, Curve, reaches, table
from tests.benchmarks.side import Side, counted
from tests.benchmarks.update import same_work


def test_advantages_in_small_agree_with_the_loops() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.advantages", "--rows", "1600", "--no-write"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| gae |" in done.stdout


def test_the_table_of_methods_by_hand() -> None:
    assert LEVEL == 0.8
    one = Curve(1, [0, 10, 20, 30, 40], [0.4, 0.5, 0.8, 0.7, 0.9], 12.0)
    other = Curve(2, [0, 10, 20, 30, 40], [0.4, 0.7, 0.7, 0.9, 0.8], 14.0)
    never = Curve(1, [0, 10, 20, 30, 40], [0.4] * 5, 10.0)
    assert (reaches(one), reaches(other), reaches(never)) == (20, 30, None)
    rows = table({"grpo": [one, other], "rloo": [never]}).splitlines()[2:]
    assert rows == [
        "| grpo | 0.400 | 0.600 | 0.750 | 0.850 (0.800 to 0.900) | 25 | 13 |",
        "| rloo | 0.400 | 0.400 | 0.400 | 0.400 | 0 of 1 seeds did | 10 |",
    ]


def test_the_table_of_overheads_by_hand() -> None:
    rows = overhead.table({"as users do": [(1.0, 0.9), (2.0, 1.5), (1.5, 1.3)]}).splitlines()[2:]
    assert rows == ["| as users do | 3 | 1.500 | 1.300 | 0.200 | 0.267 | 0.440 |"]


def test_both_sides_of_the_update_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCHMARKS", str(tmp_path / "cache"))
    with (
        Side(ours.update, 1, tmp_path / "ours.log", work="small") as mine,
        Side(trl.update, 1, tmp_path / "trl.log", work="small", micro_batch=2) as theirs,
    ):
        found = {"ours": [mine.run()], "TRL": [theirs.run()]}
    same_work(found)
    assert abs(found["ours"][0]["loss"]) > 1e-3, "lengths differ, so that the loss is not 0"
    found["TRL"][0]["gradient_norm"] *= 1.01
    with pytest.raises(AssertionError):
        same_work(found)


def test_a_bar_is_met_up_to_itself() -> None:
    assert fast.at_most("update", 5.0, 10.0, 0.5, "s").cells() == [
        "update",
        "5.00 s",
        "10.00 s",
        "0.50",
        "≤ 0.5",
        "yes",
    ]
    assert fast.limit("start", 20.1, 20).cells() == ["start", "20.10 s", "", "", "≤ 20 s", "**no**"]
    first, second = {"seconds": 25.0}, {"seconds": 24.0}
    assert counted([first, second]) == [first, second] and counted([{"seconds": 2.0}, second]) == [second]


def test_the_readme_has_the_table_that_was_measured() -> None:
    parts = fast.read(RESULTS)
    assert list(parts) == sorted(parts, key=lambda key: fast.place(key, list(PARTS)))
    assert fast.table(parts, bars=True) in README.read_text(encoding="utf-8")
