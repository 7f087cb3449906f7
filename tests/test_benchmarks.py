"""The benchmarks can be run: the one of advantages in small, which checks its loops' numbers against the methods'."""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks import overhead
from tests.benchmarks.methods import LEVEL, Curve, reaches, table


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
