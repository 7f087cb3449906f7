"""vLLM's OpenAI-compatible server on a policy of a run, in a process group that ends with the command."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from stages.contract.lifeline import end_with
from stages.contract.policy import base_of
from stages.model.adapter import rank_of, vllm_rank

MODULE = "vllm.entrypoints.openai.api_server"


def arguments(folder: Path, name: str, host: str, port: int, cpu: bool) -> list[str]:
    """What vLLM's server is told; an adapter is served on its base model, under the run's name."""
    base = base_of(folder)
    own = ["--served-model-name", name] if base is None else []
    if base is not None:
        own = [
            "--enable-lora",
            "--max-lora-rank",
            str(vllm_rank(rank_of(folder))),
            "--lora-modules",
            f"{name}={folder}",
        ]
    if cpu:
        own += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]
    return ["--model", str(base or folder), "--host", host, "--port", str(port), *own]


def serve(told: list[str], cpu: bool) -> int:
    """Runs vLLM's server until it ends or this process is told to; gives its exit code."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | ({"TORCHDYNAMO_DISABLE": "1"} if cpu else {})
    reads, holds = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serving.policy_server", str(reads), *told],
        env=os.environ | environment,
        pass_fds=(reads,),
        start_new_session=True,
    )
    os.close(reads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return process.wait()
    finally:
        os.close(holds)
        process.wait()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = [MODULE, *sys.argv[2:]]
    runpy.run_module(MODULE, run_name="__main__")
