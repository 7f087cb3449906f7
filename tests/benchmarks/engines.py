"""Engines side by side at the same batch: `python -m tests.benchmarks.engines MODEL`, on an otherwise idle machine.

Tokens a second of the vLLM engine, the transformers engine and plain `model.generate`, in interleaved runs, and the
seconds of a change of weights in the warm vLLM engine. Every completion is drawn to the limit: no token ends it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stages.contract.machine import Machine
from stages.model.load import load_model, load_tokenizer, save_policy
from stages.model.render import encode, render
from stages.sample.config import SampleConfig, SamplingConfig, VllmEngine
from stages.sample.engine import Engine
from stages.sample.transformers_engine import TransformersSampler
from stages.sample.vllm_engine import VllmSampler
from tests.benchmarks import RESULTS, circumstances, markdown


def generate(model_folder: Path, prompts: list[list[int]], group: int, tokens: int, device: str) -> Callable[[], None]:
    """Plain `model.generate` on the same prompts, padded on the left, a row for each completion."""
    model = load_model(model_folder, device)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts for _ in range(group)], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(group)], device=device)

    def run() -> None:
        with torch.no_grad():
            model.generate(  # type: ignore[operator]
                ids, attention_mask=mask, do_sample=True, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens
            )

    return run


def engine_run(engine: Engine, prompts: list[list[int]], group: int, sampling: SamplingConfig) -> Callable[[], None]:
    """Draws with an engine that has loaded its policy; other seeds each time."""
    call = iter(range(10**6))

    def run() -> None:
        first = next(call) * 10**6
        seeds = [[first + 1000 * p + i for i in range(group)] for p in range(len(prompts))]
        drawn = engine.generate(prompts, seeds, sampling, frozenset())
        assert all(len(c.tokens) == sampling.max_tokens for row in drawn for c in row)

    return run


def changes(engine: VllmSampler, model_folder: Path, runs: int) -> list[float]:
    """Seconds of a change of weights: checks, trainer's model, loading, dropped caches, probe."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        policies = [Path(folder) / name for name in ("one", "other")]
        model = load_model(model_folder, "cpu")
        for n, policy in enumerate(policies):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.001 * n)
            save_policy(model, policy, model_folder)
        for n in range(runs + 1):
            before = time.perf_counter()
            engine.load_policy(policies[n % 2], f"benchmark {n}")
            taken.append(time.perf_counter() - before)
    return taken[1:]


def main() -> None:
    """Measures, and writes `results/engines.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder, e.g. artifacts/.models/smollm2")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS / "engines.md")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    tokenizer = load_tokenizer(a.model)
    kind = "chat" if tokenizer.chat_template else "text"
    texts = [f"What is {n} plus {3 * n + 7}? Explain each step." for n in range(11, 11 + a.prompts)]
    prompts = [encode(tokenizer, render(tokenizer, [{"role": "user", "content": text}], kind), kind) for text in texts]
    sampling = SamplingConfig(max_tokens=a.tokens)
    config = SampleConfig(engine=VllmEngine(), sampling=sampling, max_prompt_tokens=max(map(len, prompts)))
    vllm, ours = VllmSampler(config, Machine(a.device, a.threads)), TransformersSampler(a.prompts * a.group, a.device)
    for engine in (vllm, ours):
        engine.load_policy(a.model, "benchmark")
    ways = {
        "vLLM engine": engine_run(vllm, prompts, a.group, sampling),
        "transformers engine": engine_run(ours, prompts, a.group, sampling),
        "model.generate": generate(a.model, prompts, a.group, a.tokens, a.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(a.runs + 1):
        for name, run in ways.items():
            before = time.perf_counter()
            run()
            if n:  # the first one warms up
                seconds[name].append(time.perf_counter() - before)
                print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    total = a.prompts * a.group * a.tokens
    rates = {name: total / statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        [
            name,
            f"{rates[name]:.0f}",
            f"{total / max(seconds[name]):.0f} to {total / min(seconds[name]):.0f}",
            f"{rates[name] / rates['model.generate']:.2f}",
        ]
        for name in ways
    ]
    swaps = changes(vllm, a.model, a.runs)
    loop = statistics.median(seconds["vLLM engine"])
    vllm.close()
    text = (
        f"# Engines on {a.model.name}, {a.prompts} prompts × {a.group} completions × {a.tokens} tokens, {a.device}, "
        f"{a.threads} threads\n\n"
        + markdown(["engine", "tokens a second (median)", "range", "of model.generate"], rows)
        + "\n\nA change of weights in the warm vLLM engine, with its checks and probe: median "
        f"{statistics.median(swaps):.2f} s ({min(swaps):.2f} to {max(swaps):.2f}), beside {loop:.1f} s of drawing this "
        "batch.\n\n"
        f"{a.runs} interleaved runs after one to warm up. {circumstances()}\n"
    )
    print(text)
    a.results.parent.mkdir(parents=True, exist_ok=True)
    a.results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
