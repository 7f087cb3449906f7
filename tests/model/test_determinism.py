"""Equal inputs give equal bytes with several threads and beside other work; what cannot is refused by name."""

import json
import subprocess
import sys

import pytest
import torch

from stages.contract.errors import EngineError, ModelError
from stages.model.determinism import processor, refusals_named, set_deterministic
from tests.busy import busy, default_threads
from tests.flows.conftest import ROOT
from tests.sample.policies import make_policy


@pytest.fixture
def deterministic():
    """Deterministic algorithms, for the time of a test."""
    set_deterministic(True)
    yield
    set_deterministic(False)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy of one layer, wide enough for torch to divide sums over its states among threads."""
    return make_policy(tmp_path_factory.mktemp("wide"), context=64, layers=1, width=128)


def digests(policy, *options):
    """How many digests each gradient had, made again and again beside two busy processes."""
    command = [sys.executable, "-m", "tests.model.gradients", str(policy), *map(str, options)]
    with busy():
        done = subprocess.run(command, cwd=ROOT, env=default_threads(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.load
@pytest.mark.parametrize(
    ("times", "mode"),
    [
        (40, "--not-deterministic"),
        pytest.param(200, "--not-deterministic", marks=pytest.mark.long),
        pytest.param(200, None, marks=pytest.mark.long),
    ],
)
def test_the_gradient_of_a_batch_with_shared_prompts_has_one_digest_with_four_threads(policy, times, mode):
    """Also without torch's deterministic mode: the project's own operations have one order of sums each.

    By indexing with a tensor in place of `index_select`, 200 times gave 65 digests of the policy, 36 of the adapter.
    """
    assert digests(policy, "--threads", 4, "--times", times, *([mode] if mode else [])) == {
        "threads": 4,
        "digests": {"policy": 1, "adapter": 1, "critic": 1},
    }


def test_the_first_call_in_a_process_gives_the_bytes_of_later_ones():
    """Without the preparation of a stage some 2 in 100 first calls of cos, exp, log and sqrt did not."""
    command = [sys.executable, "-m", "tests.model.first_calls", "--processes", "200"]
    done = subprocess.run(command, cwd=ROOT, env=default_threads(), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) >= {"cos", "log", "sqrt", "matmul", "attention"}
    assert set(found.values()) == {0}


def test_an_operation_without_a_deterministic_algorithm_is_refused_by_name_with_the_switch(deterministic):
    with pytest.raises(ModelError, match=r"operation put_ .* set hardware\.deterministic to false"), refusals_named():
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))
    told = "the sampler process failed: RuntimeError: cumsum_cuda_kernel does not have a deterministic implementation"
    with pytest.raises(ModelError, match="operation cumsum_cuda_kernel "), refusals_named():
        raise EngineError(told)


@pytest.mark.parametrize(
    ("told", "operation"),
    [
        (
            "median CUDA with indices output does not have a deterministic implementation, but",
            "median CUDA with indices",
        ),
        ("EngineError: kthvalue CUDA does not have a deterministic implementation", "operation kthvalue CUDA has"),
    ],
)
def test_the_whole_name_of_the_operation_is_told(told, operation):
    with pytest.raises(ModelError, match=operation), refusals_named():
        raise RuntimeError(told)


THREADS = """
import ctypes, json
from flows.config.schema import HardwareConfig
from flows.execution.run_stage import prepared
found = [prepared(HardwareConfig(device="cpu", threads=n)).threads for n in (1, None, 3)]
print(json.dumps([*found, ctypes.CDLL(None).omp_get_dynamic()]))
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "2"}, [1, 2, 3]),
        ({"OMP_NUM_THREADS": "2", "OMP_DYNAMIC": "true"}, [1, 2, 3]),
        ({"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "2"}, [1, 2, 2]),
    ],
)
def test_the_threads_of_a_stage_are_those_that_work_whatever_the_stage_before_had(variables, expected):
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, cwd=ROOT, env=default_threads() | variables, capture_output=True, check=True)
    *found, dynamic = json.loads(done.stdout)
    assert (found, dynamic) == (expected, 0)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), refusals_named():
        raise RuntimeError("shape")


def test_the_switch_turns_the_mode_off_again(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, {"torch": "DEFAULT"}),
        ({"MKL_CBWR": "COMPATIBLE"}, {"mkl": "COMPATIBLE"}),
        ({"MKL_CBWR": "AVX2,STRICT"}, {"mkl": "AVX2,STRICT"}),
        ({"ONEDNN_MAX_CPU_ISA": "avx2"}, {"onednn": "AVX2"}),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, {}),
    ],
)
def test_the_instruction_sets_are_those_that_the_libraries_use(variables, expected):
    code = "import json; from stages.model.determinism import processor; print(json.dumps(processor('cpu')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=default_threads() | variables, capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    for library, name in expected.items():
        assert told[library].endswith(name)
        assert told[library] != processor("cpu")[library]
    assert {name for name in told if told[name] != processor("cpu")[name]} == set(expected)
