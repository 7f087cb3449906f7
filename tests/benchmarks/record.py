"""Records a run for the results: `python -m tests.benchmarks.record artifacts/smollm2`.

Writes a row an iteration as Parquet, and a page with the held-out table and a plot. A held-out success is a mean over
prompts; its standard error counts prompts, not completions.
"""

import argparse
import math
from pathlib import Path

import polars as pl

from flows.inspection.metrics import iteration_metrics, seconds
from flows.runs.access import open_run
from flows.runs.history import History
from tests.benchmarks import RESULTS, circumstances, markdown


def figures(paths_root: Path) -> pl.DataFrame:
    """A row an iteration: its metrics, and the seconds of each stage and of changing the engine's policy."""
    paths, config = open_run(paths_root.parent, paths_root.name)
    history = History(paths)
    rows = []
    for k in range(history.last() + 1):
        manifests = [history.manifest(k, stage) for stage in ("sample", "evaluate")]
        loads = [manifest.timings.get("load", 0.0) for manifest in manifests if manifest]
        took = {f"{stage}_seconds": value for stage, value in seconds(history, config, k).items()}
        rows.append({"iteration": k, **iteration_metrics(history, k), **took, "load_seconds": math.fsum(loads)})
    return pl.DataFrame(rows, infer_schema_length=None)


def heldout(root: Path) -> pl.DataFrame:
    """Each evaluation: iteration, prompts, samples a prompt, success and its standard error over prompts."""
    rows = []
    for path in sorted((root / "iterations").glob("*/evaluate/evaluation.parquet")):
        table = pl.read_parquet(path)
        share = (table["successes"] / table["samples"]).to_numpy()
        error = share.std(ddof=1) / math.sqrt(len(share))
        rows.append((int(path.parts[-3]), len(share), int(table["samples"][0]), float(share.mean()), float(error)))
    return pl.DataFrame(rows, schema=["iteration", "prompts", "samples", "success", "error"], orient="row")


def paired_rise(root: Path, first: int, last: int) -> tuple[float, float]:
    """The rise of success from one evaluation to another, prompt by prompt, and its standard error."""
    tables = [pl.read_parquet(root / f"iterations/{k:04d}/evaluate/evaluation.parquet") for k in (first, last)]
    both = tables[0].join(tables[1], on="prompt_id", validate="1:1")
    rise = (both["successes_right"] / both["samples_right"] - both["successes"] / both["samples"]).to_numpy()
    return float(rise.mean()), float(rise.std(ddof=1) / math.sqrt(len(rise)))


def plot(table: pl.DataFrame, evaluations: pl.DataFrame, path: Path) -> None:
    """Held-out success with its standard errors over the reward of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    trained = table.drop_nulls("reward_mean")
    axes.plot(trained["iteration"], trained["reward_mean"], color="0.65", label="reward of the drawn completions")
    axes.errorbar(
        evaluations["iteration"], evaluations["success"], yerr=evaluations["error"], marker="o", capsize=3,
        label="held-out success, standard error over prompts",
    )  # fmt: skip
    axes.set_xlabel("iteration")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Writes NAME.md, NAME.png and NAME.parquet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args()
    table, evaluations = figures(a.run), heldout(a.run)
    last = int(evaluations["iteration"].max())  # type: ignore[arg-type]
    rise, error = paired_rise(a.run, 0, last)
    stages = [f"{stage}_seconds" for stage in ("sample", "score", "advantage", "update")]
    trained = table.filter(pl.col("iteration") > 0)
    whole = float(trained.select(pl.sum_horizontal(stages).sum()).item())
    loads = float(trained["load_seconds"].sum())
    rows = [
        [str(k), f"{success:.3f}", f"{spread:.3f}", str(prompts), str(samples)]
        for k, prompts, samples, success, spread in evaluations.rows()
    ]
    text = (
        f"# {a.run.name}: held-out success\n\n"
        + markdown(["iteration", "success", "standard error", "prompts", "samples a prompt"], rows)
        + f"\n\nThe rise from iteration 0 to {last}, prompt by prompt: {rise:.3f} ± {error:.3f} (standard error).\n"
        f"Greatest difference between sampler and trainer in any iteration: {table['fidelity_max'].max():.2g} nats a "
        f"token. Loading policies, their check and the engine's change of weights took {loads:.0f} s of {whole:.0f} s, "
        f"{loads / whole:.1%}.\n\n"
        f"![curve]({a.run.name}.png)\n\n{circumstances()}\n"
    )
    print(text)
    a.results.mkdir(parents=True, exist_ok=True)
    table.write_parquet(a.results / f"{a.run.name}.parquet")
    plot(table, evaluations, a.results / f"{a.run.name}.png")
    (a.results / f"{a.run.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
