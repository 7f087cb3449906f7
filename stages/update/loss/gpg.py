"""Group policy gradient (GPG, arXiv:2504.02546): the policy gradient, with its size mended for constant groups."""


def gpg_factor(rows: int, constant_rows: int, tokens: int, trained_tokens: int) -> float:
    """By what the mean over the trained tokens is multiplied to be GPG's objective.

    The paper's objective is 1/Σ|o_i| Σ_i Σ_t -log π · α A over all B rows, those M of constant groups with A = 0
    included, and α = B / (B - M) makes good for them (accurate gradient estimation). Where rows of constant groups are
    not trained on, what is left of both is α · (tokens trained on) / (tokens of all B rows): 1 where constant groups
    are as long as the others, or there are none. With nothing but constant groups it is 1.

    Args:
        rows: B, rows trained on or of constant groups.
        constant_rows: M, rows of groups whose rewards are all equal, trained on or not.
        tokens: completion tokens of the B rows.
        trained_tokens: completion tokens of the rows that are trained on.
    """
    assert 0 <= constant_rows <= rows and trained_tokens <= tokens
    if constant_rows == rows:
        return 1.0
    return rows / (rows - constant_rows) * trained_tokens / tokens
