"""Group policy gradient (GPG, arXiv:2504.02546): the policy gradient, with its size mended for constant groups."""


def gpg_factor(trained_rows: int, trained_tokens: int, constant_rows: int, constant_tokens: int) -> float:
    """By what the mean over the trained tokens is multiplied to be GPG's objective.

    The paper's objective is 1/Σ|o_i| Σ_i Σ_t -log π · α A over all B rows, those M of constant groups with A = 0
    included, and α = B / (B - M) makes good for them (accurate gradient estimation). The rows of constant groups are
    not trained on here, so what is left of both is α · (tokens trained on) / (tokens of all B rows): 1 where constant
    groups are as long as the others, or there are none.

    Args:
        trained_rows: B - M, rows that are trained on.
        trained_tokens: their completion tokens.
        constant_rows: M, rows of groups whose rewards are all equal.
        constant_tokens: their completion tokens.
    """
    if trained_rows == 0:
        return 1.0
    alpha = (trained_rows + constant_rows) / trained_rows
    return alpha * trained_tokens / (trained_tokens + constant_tokens)
