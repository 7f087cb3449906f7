"""The sampler process: one vLLM engine, which answers what the stage asks. The only file that imports vLLM.

Started as `python -m stages.sample.vllm_worker SOCKET LIFELINE`. Requests are (command, arguments); each is answered by
any number of ("beat", completions done), then ("done", result) or ("failed", message).
"""

import contextlib
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from stages.contract.lifeline import end_group, end_with
from stages.model.determinism import set_deterministic

EXTENSION = "stages.sample.vllm_worker.Reloading"


class Reloading:
    """What vLLM's workers can do beside their own: change all weights, packed copies of tied ones too; one mode."""

    def use_deterministic(self, deterministic: bool) -> bool:
        """Sets torch's mode in a worker's process; returns whether deterministic algorithms are on."""
        set_mode(deterministic)
        return torch.are_deterministic_algorithms_enabled()

    def change_weights(self, folder: str) -> None:
        """Reads the weights in `folder`. vLLM's CPU build packs the output head, and forgets to when it is tied."""
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        if worker.device.type == "cpu" and getattr(worker.model_config.hf_text_config, "tie_word_embeddings", False):
            head = worker.get_model().lm_head
            head.quant_method.process_weights_after_loading(head)


def set_mode(deterministic: bool) -> None:
    """Sets torch's mode in this process.

    Uninitialised memory is not filled in deterministic mode, as torch does by default: vLLM's buffers are large.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    set_deterministic(deterministic)


class Sampler:
    """The engine and what can be asked of it."""

    def __init__(self, beat: Callable[[int], None]) -> None:
        self._beat = beat
        self._llm: Any = None
        self._asleep = False
        self._adapter: Any = None

    def start(self, folder: str, settings: dict[str, Any], deterministic: bool) -> dict[str, Any]:
        """Starts the engine with the model in `folder`; says which it is.

        The mode is set in this process first, and in each worker of tensor parallelism after its start.
        """
        set_mode(deterministic)
        import vllm

        self._llm = vllm.LLM(
            model=folder,
            trust_remote_code=False,
            generation_config="vllm",
            seed=0,
            enable_prefix_caching=True,
            worker_extension_cls=EXTENSION,
            **settings,
        )
        modes = self._llm.collective_rpc("use_deterministic", args=(deterministic,))
        config = self._llm.llm_engine.vllm_config
        return {
            "vllm": vllm.__version__,
            "platform": str(vllm.platforms.current_platform.device_type),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "context": int(config.model_config.max_model_len),
            "block_size": int(config.cache_config.block_size),
            "cache_blocks": int(config.cache_config.num_gpu_blocks),
            "threads": torch.get_num_threads(),
            "deterministic": all(modes),
            "settings": settings,
        }

    def load(self, folder: str, adapter: str | None, adapter_number: int) -> None:
        """Changes the weights, wakes the engine, and drops what was computed with the old ones.

        Args:
            folder: the model; read again only where there is no adapter, or the engine sleeps.
            adapter: the adapter's folder, None for none.
            adapter_number: a new one for each adapter: of a known number vLLM silently keeps the former.
        """
        if self._asleep:
            self._llm.wake_up(["weights"])
        if self._asleep or adapter is None:
            self._llm.collective_rpc("change_weights", args=(folder,))
        if self._asleep:
            self._llm.wake_up(["kv_cache"])
            self._asleep = False
        self._take_adapter(adapter, adapter_number)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be dropped")

    def _take_adapter(self, adapter: str | None, number: int) -> None:
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = None if adapter is None else LoRARequest(f"adapter-{number}", number, adapter)

    def sleep(self) -> dict[str, int]:
        """Frees the weights and the cache on a GPU; the bytes that were free on it before and after."""
        before, _ = torch.cuda.mem_get_info()
        self._llm.sleep(level=2)
        self._asleep = True
        after, _ = torch.cuda.mem_get_info()
        return {"free_before": before, "free_after": after}

    def probe(self, tokens: list[int]) -> list[float]:
        """Log-probabilities of tokens[1:], each given those before it, by the model itself."""
        request = self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        [output] = self._run([tokens], [request])
        return [
            float(entry[token].logprob) for token, entry in zip(tokens, output.prompt_logprobs, strict=True) if entry
        ]

    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], parameters: dict[str, Any]
    ) -> tuple[list[list[tuple[list[int], list[float], str]]], int]:
        """Each prompt's completions, one for each of its seeds, as (tokens, log-probabilities, finish reason).

        Beside them, how many prompt tokens were found in the prefix cache and not computed again. The cache is empty at
        first: what an earlier call left in it would decide which tokens are computed together, and so the last bits.
        """
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be dropped")
        flat = [(prompt, seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
        requests = [self._parameters(seed=seed, logprobs=0, flat_logprobs=True, **parameters) for _, seed in flat]
        outputs = self._run([prompt for prompt, _ in flat], requests)
        drawn = iter([_completion(output.outputs[0]) for output in outputs])
        groups = [[next(drawn) for _ in row] for row in seeds]
        return groups, sum(output.num_cached_tokens or 0 for output in outputs)

    def _parameters(self, **parameters: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**parameters)

    def _run(self, prompts: list[list[int]], parameters: list[Any]) -> list[Any]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        names = self._llm.enqueue(asked, parameters, lora_request=self._adapter, use_tqdm=False)
        engine, outputs = self._llm.llm_engine, []
        while engine.has_unfinished_requests():
            outputs += [output for output in engine.step() if output.finished]
            self._beat(len(outputs))
        assert len(outputs) == len(names)
        return sorted(outputs, key=lambda output: int(output.request_id))  # they are numbered as they were asked


def _completion(output: Any) -> tuple[list[int], list[float], str]:
    logprobs = output.logprobs
    assert logprobs.token_ids[: len(logprobs.logprobs)] == list(output.token_ids), "one log-probability for each token"
    return list(output.token_ids), [float(value) for value in logprobs.logprobs], str(output.finish_reason)


def _serve(pipe: Connection) -> None:
    """Answers until the parent is gone."""
    sampler = Sampler(lambda done: pipe.send(("beat", done)))
    commands: dict[str, Callable[..., Any]] = {
        name: getattr(sampler, name) for name in ("start", "load", "sleep", "probe", "generate")
    }
    with contextlib.suppress(EOFError, OSError):
        while True:
            command, arguments = pipe.recv()
            try:
                pipe.send(("done", commands[command](**arguments)))
            except Exception as error:  # whatever it is, the parent is told, and throws this process away
                import traceback

                traceback.print_exc()
                pipe.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    _serve(Connection(int(sys.argv[1])))
    end_group()  # an exit would end this process alone, and might come before the lifeline was seen to be cut
