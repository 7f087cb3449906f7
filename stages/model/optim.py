"""AdamW whose whole state lies in one safetensors file, and its learning-rate schedule."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stages.contract.errors import ArtifactError, DivergenceError
from stages.model.config import OptimizerConfig, ScheduleConfig


def schedule_factor(step: int, config: ScheduleConfig) -> float:
    """The part of the full learning rate that optimizer step `step` (1, 2, …) takes."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.type == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / config.decay_steps)
    shape = 1 - done if config.type == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.final_ratio + (1 - config.final_ratio) * shape


class Optimizer:
    """AdamW with clipping and schedule; counts its steps over the whole run."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adamw = torch.optim.AdamW(
            self._named.values(),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._steps = 0
        self._former: Callable[[], Mapping[str, Tensor]] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far; the state that it goes on from is read for it, where it was not yet."""
        if self._former is not None:
            read, self._former = self._former, None
            self._take_up(read())
        return self._steps

    def clip(self) -> float:
        """Clips the gradients; returns their norm before.

        Raises:
            DivergenceError: the norm is not finite; nothing was changed.
        """
        norm = nn.utils.clip_grad_norm_(self._named.values(), self._config.max_gradient_norm).item()
        if not math.isfinite(norm):
            raise DivergenceError(
                f"optimizer step {self.steps + 1}: the gradient's norm is {norm}; nothing was changed"
            )
        return norm

    def step(self, norm: float | None = None) -> dict[str, float]:
        """Steps by the gradients, and clears them; returns `gradient_norm` before clipping and `learning_rate`.

        Args:
            norm: what `clip` gave; None clips first.

        Raises:
            DivergenceError: the gradient is not finite, and nothing was changed; or the step made weights so.
        """
        norm = self.clip() if norm is None else norm
        self._steps = self.steps + 1
        rate = self._config.learning_rate * schedule_factor(self.steps, self._config.schedule)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.clear()
        if wrong := [name for name, parameter in self._named.items() if not bool(parameter.isfinite().all())]:
            raise DivergenceError(
                f"optimizer step {self.steps}: at a learning rate of {rate:g} the weights of {wrong[0]} are no longer "
                "finite: lower it"
            )
        return {"gradient_norm": norm, "learning_rate": rate}

    def clear(self) -> None:
        """Forgets the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Steps and moments by parameter name, for safetensors."""
        out = {"steps": torch.tensor(self.steps)}
        for name, parameter in self._named.items():
            for key, value in self._adamw.state.get(parameter, {}).items():
                out[f"{key}.{name}"] = value
        return out

    def restore(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        """Goes on from a state that `state` gave, and changes it from then on.

        It is read when it is needed, at the first step, so that it takes no memory while the first gradients are made.

        Args:
            read: gives the state; who needs it first gets an ArtifactError where it belongs to other parameters.
        """
        self._former = read

    def _take_up(self, state: Mapping[str, Tensor]) -> None:
        keys = {name.split(".", 1)[0] for name in state} - {"steps"}
        expected = {"steps"} | {f"{key}.{name}" for key in keys for name in self._named}
        if set(state) != expected:
            raise ArtifactError(f"the optimizer state is of another model: {sorted(set(state) ^ expected)[:5]}")
        self._steps = int(state["steps"])
        for name, parameter in self._named.items():
            for key in sorted(keys):
                value = state[f"{key}.{name}"]
                if key != "step" and value.shape != parameter.shape:
                    raise ArtifactError(f"the optimizer state of {name} has shape {tuple(value.shape)}")
                self._adamw.state[parameter][key] = value.to(parameter.device)
