"""The policy that a process has trained and needs again in the next iteration, by the digest of the files that say it.

Disk is the truth: who asks has checked the files, and reads them where nothing is held. The optimizer's state is not
held: it would take twice the policy's memory while gradients are made, which do not need it.
"""

from typing import Any

from transformers import PreTrainedModel

_held: dict[str, PreTrainedModel] = {}


def hold(digest: str, policy: PreTrainedModel) -> None:
    """Keeps a policy in place of what was held before."""
    _held.clear()
    _held[digest] = policy


def take(digest: str, device: str) -> PreTrainedModel | None:
    """Gives the policy away, to be changed; None where another one is held, or none. Then nothing is any more."""
    policy: Any = _held.pop(digest, None)
    _held.clear()
    return None if policy is None else policy.to(device)
