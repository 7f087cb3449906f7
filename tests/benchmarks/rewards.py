"""Verdicts a second: `python -m tests.benchmarks.rewards`, on an idle machine. It takes about a minute.

Judges answers as policies give them: eight to a problem, several of them the same, some wrong; and then answers that
were made to hold a verifier. The verifiers are imported before the clock starts. Processor time counts all processes,
and says the same on a machine that has other work.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from stages.score.reward_config import MathReward, ReasoningGymReward, Reward
from stages.score.rewards import judge
from stages.score.verdict import Item
from stages.score.workers import pool
from tests.benchmarks import RESULTS, circumstances, markdown

ROWS = 16_000
GROUP = 8
"""Answers to a problem."""
LIMIT = 2000
"""Ordinary answers of mathematics a second that are wanted of two cores."""
BUSY = 0.5
"""Load before the start from which on the seconds on the clock are said to be too many."""
HOSTILE = ["9^9^9^9", "10**10**10", "1000000!", "(" * 100_000, "\ud800", "\x00", "2^{2^{2^{2^{2^2}}}}"]
Problem = tuple[str, list[str]]
"""The right answer, and what policies answer."""


def integer(rng: random.Random) -> Problem:
    """A number, in the spellings that are in use."""
    n = rng.randint(-99_999, 99_999)
    return str(n), [f"{n}", f"{n:,}", f"${n}$", f"{n}.0", f"x = {n}", f"{n + 1}", f"{n / 2}"]


def fraction(rng: random.Random) -> Problem:
    """A fraction, as LaTeX or text."""
    a, b, k = rng.randint(1, 99), rng.randint(2, 99), rng.randint(2, 4)
    return rf"\frac{{{a}}}{{{b}}}", [f"{a}/{b}", rf"\dfrac{{{a * k}}}{{{b * k}}}", rf"\frac{{{a}}}{{{b + 1}}}", f"{a}"]


def expression(rng: random.Random) -> Problem:
    """An expression, which math-verify compares where the spelling is another one."""
    a, b = rng.randint(2, 9), rng.randint(2, 99)
    return f"{a}x+{b}", [f"{a}x+{b}", f"{a}x + {b}", f"{b}+{a}x", f"{b}+{a + 1}x"]


def ordinary(rng: random.Random) -> Problem:
    """Seven problems of ten ask for numbers, two for fractions, one for an expression."""
    return rng.choices([integer, fraction, expression], [7, 2, 1])[0](rng)


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "integers and decimals": integer,
    "fractions": fraction,
    "expressions": expression,
    "ordinary answers": ordinary,
}


def answers(kind: Callable[[random.Random], Problem], rows: int, rng: random.Random) -> list[Item]:
    """Completions of as many problems as make `rows` of them."""
    problems = [kind(rng) for _ in range(rows // GROUP)]
    return [Item(rng.choice(given), 1, "math", gold, {}) for gold, given in problems for _ in range(GROUP)]


def processor_seconds() -> float:
    """Of this process, of those that fork workers, and of the workers that are over."""
    spent = time.process_time()
    for nursery in pool.nurseries():
        fields = Path(f"/proc/{nursery}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        spent += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return spent


def row(told: str, reward: Reward, items: list[Item]) -> list[str]:
    """A row of the table: verdicts a second on the clock and of processor time, and rows without a verdict."""
    judge(reward, items[-GROUP:])
    clock, spent = time.perf_counter(), processor_seconds()
    marks = judge(reward, items)
    seconds, processor = time.perf_counter() - clock, processor_seconds() - spent
    lost = sum(mark.status != "ok" for mark in marks)
    rates = [f"{len(items) / taken:,.0f}" for taken in (seconds, processor)]
    return [reward.type, told, f"{len(items):,}", *rates, str(lost)]


def main() -> None:
    """Prints the rates and writes rewards.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="answers of each kind")
    a = parser.parse_args()
    load, rng = os.getloadavg()[0], random.Random(0)
    table = [row(name, MathReward(type="math"), answers(kind, a.rows, rng)) for name, kind in KINDS.items()]
    hostile = [Item(answer, 1, "math", "5", {}) for answer in HOSTILE]
    table.append(row("hostile, at most 0.5 s each", MathReward(type="math", timeout=0.5), hostile))
    posed = {"source_dataset": "chain_sum", "question": "40 + 2 ="}
    sums = [Item(rng.choice(["42", "41"]), 1, "sums", "42", posed) for _ in range(a.rows)]
    table.append(row("chain_sum", ReasoningGymReward(type="reasoning_gym"), sums))
    head = ["reward", "answers", "rows", "a second", "a second of processor time", "without a verdict"]
    busy = (
        f" Other work ran at the same time (load {load:.1f}): the rates on the clock are too low."
        if load > BUSY
        else ""
    )
    page = (
        f"# Rewards\n\n{markdown(head, table)}\n\n"
        f"Wanted are {LIMIT:,} ordinary answers a second on two cores; workers use both, cheap comparisons one."
        f"{busy}\n\n"
        f"{circumstances()}\n"
    )
    (RESULTS / "rewards.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
