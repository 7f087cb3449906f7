"""Advantages of a million completions: `python -m tests.benchmarks.advantages`.

Beside each method the loop over rows and dictionaries that does the same arithmetic, on a part of the rows, its time
multiplied up; that both give the same numbers is checked before anything is timed.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import polars as pl

from stages.advantage.batch import batch_of
from stages.advantage.config import AdvantageConfig, Gae, Grpo, Process, Reinforce, ReinforcePlusPlus, Rloo
from stages.advantage.methods import estimate
from stages.advantage.ragged import to_lists
from stages.advantage.stage import advantage_rows
from tests.benchmarks import RESULTS, circumstances, markdown

GROUP, STEPS = 8, 4
METHODS: dict[str, AdvantageConfig] = {
    "grpo": Grpo(),
    "grpo, scale batch": Grpo(scale="batch"),
    "grpo, scale mad": Grpo(scale="mad"),
    "grpo, scale none": Grpo(scale="none"),
    "grpo, leave one out": Grpo(baseline="leave_one_out"),
    "grpo, two rewards, each normalised": Grpo(rewards="normalise_then_sum"),
    "rloo": Rloo(type="rloo"),
    "process": Process(type="process"),
    "reinforce": Reinforce(type="reinforce", baseline="batch", gamma=0.99),
    "reinforce_plus_plus": ReinforcePlusPlus(type="reinforce_plus_plus"),
    "reinforce_plus_plus, group baseline": ReinforcePlusPlus(type="reinforce_plus_plus", baseline="group"),
    "gae": Gae(type="gae", gamma=0.99),
}


def rows(count: int, tokens: int, config: AdvantageConfig) -> pl.DataFrame:
    """Completions of `tokens` tokens in groups, with the columns that the method reads."""
    rng = np.random.default_rng(0)
    prompt = pl.Series(np.arange(count) // GROUP).cast(pl.String).str.zfill(64)
    right, form = rng.integers(0, 2, count).astype(float), rng.integers(0, 5, count) / 4
    length = np.full(count, tokens)
    columns = {"prompt_id": prompt, "sample": np.arange(count) % GROUP, "length": length, "reward": right + form}
    if isinstance(config, Grpo) and config.rewards == "normalise_then_sum":
        columns |= {
            "reward_right": right,
            "reward_form": form,
            "weight_right": 1 + 0 * form,
            "weight_form": 1 + 0 * form,
        }
    if isinstance(config, Gae):
        columns["values"] = to_lists(rng.random(count * tokens, dtype=np.float32), length)
    if isinstance(config, Process):
        earned = np.zeros((count, tokens), dtype=np.float32)
        earned[:, tokens // STEPS - 1 :: tokens // STEPS] = rng.integers(0, 2, (count, STEPS))
        ends = np.tile(np.arange(tokens // STEPS - 1, tokens, tokens // STEPS), count)
        columns["reward"] = earned.sum(1).astype(float)
        columns["token_rewards"] = to_lists(earned.ravel(), length)
        columns["step_ends"] = to_lists(ends.astype(np.float32), np.full(count, STEPS)).cast(pl.List(pl.Int32))
    return pl.DataFrame(columns)


def grpo_loop(frame: pl.DataFrame, config: Grpo) -> list[float]:
    """GRPO, a row and a dictionary at a time."""
    groups: dict[str, list[float]] = {}
    for name, reward in frame.select("prompt_id", "reward").iter_rows():
        groups.setdefault(name, []).append(reward)
    statistics = {}
    for name, rewards in groups.items():
        mean = sum(rewards) / len(rewards)
        statistics[name] = mean, (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    out = []
    for name, reward, length in frame.select("prompt_id", "reward", "length").iter_rows():
        mean, std = statistics[name]
        out += [(reward - mean) / (std + config.eps)] * length
    return out


def gae_loop(frame: pl.DataFrame, config: Gae) -> list[float]:
    """GAE, a row and a token at a time."""
    out: list[float] = []
    for values, reward in frame.select("values", "reward").iter_rows():
        advantage, after, row = 0.0, 0.0, []
        for t in range(len(values) - 1, -1, -1):
            delta = (reward if t == len(values) - 1 else 0.0) + config.gamma * after - values[t]
            advantage = delta + config.gamma * config.gae_lambda * advantage
            after = values[t]
            row.append(advantage)
        out += reversed(row)
    return out


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """The shortest of a few runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def loop_seconds(config: AdvantageConfig, frame: pl.DataFrame, part: int) -> float | None:
    """Seconds that a loop would take for the whole frame, from those for its first `part` rows."""
    some = frame.head(part)
    if config == METHODS["grpo"]:
        loop = lambda: grpo_loop(some, config)  # noqa: E731
        wanted = advantage_rows(some, config)[0]
    elif isinstance(config, Gae):
        loop = lambda: gae_loop(some, config)  # noqa: E731
        wanted = advantage_rows(some, config.model_copy(update={"whiten": False}))[0]
    else:
        return None
    np.testing.assert_allclose(loop(), wanted["advantages"].explode().to_numpy(), rtol=1e-4, atol=1e-5)
    return seconds(loop, repeat=1) * frame.height / part


def main() -> None:
    """Measures and writes `results/advantages.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    found = []
    for name, config in METHODS.items():
        frame = rows(arguments.rows, arguments.tokens, config)
        batch = batch_of(frame)
        train_N = np.ones(arguments.rows, dtype=bool)
        arithmetic = seconds(lambda b=batch, t=train_N, c=config: estimate(b, t, c, {}))
        whole = seconds(lambda f=frame, c=config: advantage_rows(f, c), repeat=2)
        loop = loop_seconds(config, frame, max(GROUP, arguments.rows // 50 // GROUP * GROUP))
        found.append([name, f"{arithmetic:.2f}", f"{whole:.2f}", "" if loop is None else f"{loop:.1f}"])
        print(*found[-1], sep="\t", flush=True)
    header = ["method", "arithmetic, s", "table to table, s", "loop over rows and dictionaries, s"]
    text = (
        f"# Advantages of {arguments.rows:,} completions of {arguments.tokens} tokens, in groups of {GROUP}\n\n"
        f"{markdown(header, found)}\n\n"
        "Arithmetic: from arrays of rewards to an array with an advantage for each token. Table to table: from a\n"
        "table of rewards to the table `advantages`, all its columns and reasons included. The loop (timed on a\n"
        "fiftieth of the rows, multiplied by fifty) does the arithmetic alone. The shortest of a few runs each.\n\n"
        f"{circumstances()}\n"
    )
    print(text)
    if not arguments.no_write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "advantages.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
