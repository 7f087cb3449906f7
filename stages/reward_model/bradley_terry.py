"""The Bradley–Terry loss of pairs. Tensors only.

Dimensions: P pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def losses(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """-log σ(r_chosen - r_rejected) of each pair (nats); log 2 where the two rewards are equal.

    The probability that the chosen one is preferred is σ(r_chosen - r_rejected) (Bradley and Terry, "Rank Analysis of
    Incomplete Block Designs", 1952); as a loss of reward models: Ouyang et al., arXiv:2203.02155, equation 1.

    Args:
        chosen_P: rewards of the chosen answers.
        rejected_P: rewards of the rejected ones.
    """
    assert chosen_P.shape == rejected_P.shape and chosen_P.dim() == 1
    return -logsigmoid(chosen_P - rejected_P)
