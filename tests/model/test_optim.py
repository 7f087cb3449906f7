"""The optimizer: its schedule by hand, and its state across a file."""

import math

import pytest
import torch
from torch import nn

from stages.contract.errors import ArtifactError, DivergenceError
from stages.contract.weights import read_tensors, write_tensors
from stages.model.config import OptimizerConfig, ScheduleConfig
from stages.model.optim import Optimizer, schedule_factor


def test_the_schedule_warms_up_comes_down_and_stays():
    linear = ScheduleConfig(type="linear", warmup_steps=4, decay_steps=10, final_ratio=0.2)
    got = [schedule_factor(step, linear) for step in (1, 2, 4, 5, 9, 14, 100)]
    assert got == pytest.approx([0.25, 0.5, 1.0, 0.92, 0.6, 0.2, 0.2])
    cosine = ScheduleConfig(type="cosine", decay_steps=8)
    assert [schedule_factor(step, cosine) for step in (2, 4, 8)] == pytest.approx([(1 + math.sqrt(0.5)) / 2, 0.5, 0.0])
    assert {schedule_factor(step, ScheduleConfig()) for step in (1, 10, 1000)} == {1.0}


def test_the_first_step_of_adamw_by_hand():
    # After one step the bias-corrected moments are g and g², so the step is lr · g / (|g| + eps); decay is lr · wd · w.
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, max_gradient_norm=100.0)
    optimizer = Optimizer(model, config)
    (3.0 * model.weight).sum().backward()
    assert optimizer.step() == {"gradient_norm": 3.0, "learning_rate": 0.1}
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1)


def walk(model, optimizer, steps, generator):
    for _ in range(steps):
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def test_a_state_that_went_through_a_file_goes_on_with_the_same_bits(tmp_path):
    config = OptimizerConfig(
        learning_rate=0.01, weight_decay=0.1, schedule=ScheduleConfig(type="linear", warmup_steps=3, decay_steps=9)
    )
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(1)
    first = Optimizer(one, config)
    walk(one, first, 4, generator)
    write_tensors(tmp_path / "optimizer.safetensors", first.state())
    two = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    two.load_state_dict(one.state_dict())
    second = Optimizer(two, config)
    second.restore(lambda: read_tensors(tmp_path / "optimizer.safetensors"))
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    walk(one, first, 4, generator)
    walk(two, second, 4, copy)
    assert second.steps == 8
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    optimizer = Optimizer(model, OptimizerConfig())
    (model.weight.sum() * math.inf).backward()
    with pytest.raises(DivergenceError, match="step 1"):
        optimizer.step()
    assert torch.equal(before, model.weight)


def test_a_state_of_another_model_is_refused(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = Optimizer(model, OptimizerConfig())
    model.weight.sum().backward()
    model.bias.sum().backward()
    optimizer.step()
    other = Optimizer(nn.Linear(2, 1, bias=False), OptimizerConfig())
    other.restore(optimizer.state)
    with pytest.raises(ArtifactError, match="another model"):
        other.state()
    wider = Optimizer(nn.Linear(3, 1), OptimizerConfig())
    wider.restore(optimizer.state)
    with pytest.raises(ArtifactError, match="shape"):
        wider.state()


def test_a_state_is_read_when_a_step_needs_it_and_once():
    model = nn.Linear(2, 1)
    first = Optimizer(model, OptimizerConfig())
    model(torch.ones(1, 2)).sum().backward()
    first.step()
    read = []
    second = Optimizer(model, OptimizerConfig())
    second.restore(lambda: read.append(1) or first.state())
    model(torch.ones(1, 2)).sum().backward()
    norm = second.clip()
    assert not read
    second.step(norm)
    assert (second.steps, read) == (2, [1])


def test_a_file_that_is_not_safetensors_is_named(tmp_path):
    (tmp_path / "optimizer.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"optimizer\.safetensors"):
        read_tensors(tmp_path / "optimizer.safetensors")
