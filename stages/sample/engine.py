"""What an engine is to the sample stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stages.contract.progress import Progress, no_progress
from stages.sample.config import SamplingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Completion:
    """One completion as token ids."""

    tokens: list[int]
    """[T], the end token included where it was drawn."""
    logprobs: list[float]
    """[T] nats, of the distribution that was sampled from, or the model's own, as `sampling.logprobs` says; at
    temperature 0 the model's own."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Draws completions from one policy at a time."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and completion at most."""

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""

    def load_policy(self, folder: Path, digest: str) -> None:
        """Loads the policy in `folder`, whose digest is `digest`; does nothing if just that policy is loaded."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        stop: frozenset[int],
        progress: Progress = no_progress,
    ) -> list[list[Completion]]:
        """For each prompt as many completions as it has seeds.

        A completion depends on the policy, its prompt and its seed; what else is in the call changes its
        log-probabilities by rounding only, which may, rarely, tip the choice of a token.
        """

    def trainer_model(self) -> "PreTrainedModel":
        """The loaded policy as the trainer has it, for comparisons."""

    def rest(self) -> dict[str, Any]:
        """Frees what other stages may need; says what that brought. The next `load_policy` makes it ready again."""

    def describe(self) -> dict[str, Any]:
        """Which engine this is, its version and settings."""

    def close(self) -> None:
        """Ends what it has started."""
