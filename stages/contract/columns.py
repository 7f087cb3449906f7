"""The schemas of all tables. The only place where a column's name and type are decided.

Dimensions in the comments: T_p prompt tokens, T completion tokens. Log-probabilities are natural (nats).
"""

from dataclasses import dataclass

import pyarrow as pa

KEY = ("prompt_id", "sample")
SCHEMA_VERSION = 3
"""Raised with each change of a schema. Tables of older versions are read: a column that came later is null in them.

1: the first. 2: scores have values, token_rewards, step_ends and weights, advantages have returns.
3: rollouts have messages and format, scores notes of rewards, prompts their source and level."""
CONSTANT_GROUP = "constant group"
"""The `reason` of a row that is not trained on because all rewards of its group are equal."""

_ints = pa.list_(pa.int32())
_tokens = _ints
_floats = pa.list_(pa.float32())
_messages = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_key = [_required("prompt_id", pa.string()), _required("sample", pa.int32())]


@dataclass(frozen=True)
class Table:
    """A table's name, fixed columns, key, and the columns that appear by pattern (one for each reward, say)."""

    name: str
    fields: tuple[pa.Field, ...]
    key: tuple[str, ...] = KEY
    families: tuple[tuple[str, pa.DataType], ...] = ()
    """(prefix, type): any number of columns whose names begin with the prefix."""

    def schema(self, names: list[str]) -> pa.Schema:
        """The schema of a table with the columns `names`: the fixed ones first, then the families' in the order given.

        Raises:
            ValueError: a column that belongs to no family, or a fixed one that is missing.
        """
        fixed = [field.name for field in self.fields]
        if missing := [name for name in fixed if name not in names]:
            raise ValueError(f"table {self.name!r} lacks the columns {missing}")
        extra = []
        for name in (name for name in names if name not in fixed):
            kind = next((kind for prefix, kind in self.families if name.startswith(prefix)), None)
            if kind is None:
                raise ValueError(f"table {self.name!r} has no column {name!r}")
            extra.append(pa.field(name, kind))
        metadata = {"table": self.name, "schema_version": str(SCHEMA_VERSION)}
        return pa.schema([*self.fields, *extra], metadata=metadata)


PROMPTS = Table(
    "prompts",
    (
        _required("prompt_id", pa.string()),  # digest of the messages
        _required("messages", _messages),  # what is asked; a plain text is one message of the user
        _required("format", pa.string()),  # chat | text: how the messages become the model's text
        _required("task", pa.string()),  # selects rewards; for reasoning-gym its family
        pa.field("answer", pa.string()),  # the right answer where the source has one
        _required("metadata", pa.string()),  # JSON object: whatever else the source said
        pa.field("source", pa.string()),  # the part of the mixture that it came from
        pa.field("level", pa.int32()),  # how hard the source says it is; 0 is the easiest
    ),
    key=("prompt_id",),
)

QUESTIONS = Table(
    "questions",
    (
        _required("prompt_id", pa.string()),
        _required("near", pa.int64()),  # digest of what the source asks, but for wording, case and white space
    ),
    key=("prompt_id",),
)

DEMONSTRATIONS = Table(
    "demonstrations",
    (
        *_key,
        _required("prompt", pa.string()),  # as the model sees it
        _required("completion", pa.string()),
        pa.field("correct", pa.bool_()),  # null where nobody knows
    ),
)

SUPERVISED_STEPS = Table(
    "supervised_steps",
    tuple(
        [_required(name, pa.int64()) for name in ("step", "tokens")]
        + [_required(name, pa.float64()) for name in ("learning_rate", "loss", "gradient_norm")]
    ),
    key=("step",),
)

PREFERENCES = Table(
    "preferences",
    (
        _required("pair", pa.int64()),
        _required("heldout", pa.bool_()),
        _required("chosen", pa.string()),  # as the reward model reads it, the prompt included
        _required("rejected", pa.string()),
        pa.field("chosen_reward", pa.float64()),  # by the trained model; null for pairs that it was trained on
        pa.field("rejected_reward", pa.float64()),
    ),
    key=("pair",),
)

PREFERENCE_STEPS = Table(
    "preference_steps",
    tuple(
        [_required(name, pa.int64()) for name in ("step", "pairs", "tokens")]
        + [_required(name, pa.float64()) for name in ("learning_rate", "loss", "accuracy", "margin", "gradient_norm")]
    ),
    key=("step",),
)

ROLLOUTS = Table(
    "rollouts",
    (
        *_key,
        _required("prompt", pa.string()),  # the text that was tokenised
        _required("prompt_tokens", _tokens),  # [T_p]
        _required("completion", pa.string()),  # decoded without special tokens
        _required("completion_tokens", _tokens),  # [T], the end token included where it was drawn
        _required("sampler_logprobs", _floats),  # [T], of the distribution that was sampled from
        _required("finish_reason", pa.string()),  # stop | length
        _required("temperature", pa.float32()),
        _required("seed", pa.int64()),
        _required("task", pa.string()),
        pa.field("answer", pa.string()),
        _required("metadata", pa.string()),
        _required("policy_digest", pa.string()),  # of the behaviour policy's folder
        pa.field("messages", _messages),  # what was asked, as in the table of prompts
        pa.field("format", pa.string()),  # chat | text
    ),
)

SCORES = Table(
    "scores",
    (
        *_key,
        pa.field("reward", pa.float64()),  # weighted sum; null where a reward failed
        pa.field("error", pa.string()),  # what failed
        pa.field("extracted", pa.string()),  # the answer that the first reward to look for one found
        pa.field("reference_logprobs", _floats),  # [T]
        pa.field("values", _floats),  # [T], the critic's, before each token; null without a critic
        # [T], the part of `reward` earned at each token; null where all is the last's
        pa.field("token_rewards", _floats),
        pa.field("step_ends", _ints),  # [S], ascending: the last token of each step that was judged
    ),
    families=(
        ("reward_", pa.float64()),
        ("status_", pa.string()),
        ("weight_", pa.float64()),
        ("note_", pa.string()),  # JSON: what a reward said beside its value
    ),
)

ADVANTAGES = Table(
    "advantages",
    (
        *_key,
        _required("advantages", _floats),  # [T]
        pa.field("returns", _floats),  # [T], what the critic is to foretell; null but for gae
        _required("train", pa.bool_()),
        pa.field("reason", pa.string()),  # why not
        pa.field("group_mean", pa.float64()),
        pa.field("group_std", pa.float64()),
    ),
)

ADVANTAGE_STATE = Table(
    "advantage_state",
    (
        _required("name", pa.string()),  # what an iteration hands on to the next: a running baseline, a coefficient
        _required("value", pa.float64()),
    ),
    key=("name",),
)

STEPS = Table(
    "steps",
    tuple(
        [_required(name, pa.int64()) for name in ("step", "epoch", "minibatch", "rows", "tokens")]
        + [_required(name, pa.float64()) for name in ("learning_rate", "loss", "gradient_norm")]
    ),
    key=("step",),
    families=(
        ("policy_loss", pa.float64()),
        ("kl", pa.float64()),
        ("entropy", pa.float64()),
        ("clip_fraction", pa.float64()),
        ("ratio", pa.float64()),
        ("mismatch", pa.float64()),
        ("effective_sample_size", pa.float64()),
        ("value", pa.float64()),
        ("return", pa.float64()),
        ("explained_variance", pa.float64()),
        ("critic", pa.float64()),
    ),
)

RESCORED = Table(
    "rescored",
    (
        _required("iteration", pa.int32()),
        _required("heldout", pa.bool_()),  # whether the prompt is held out
        *_key,
        _required("task", pa.string()),
        _required("length", pa.int32()),  # tokens
        _required("repetition", pa.float64()),  # share of repeated pieces of four tokens
        pa.field("right", pa.bool_()),  # by the reward that says what a success is; null where it gave no verdict
        pa.field("old", pa.float64()),  # the reward that the run was trained with
        pa.field("new", pa.float64()),  # the weighted sum of the other ones; null where one failed
        pa.field("error", pa.string()),  # what failed
        # mean over the tokens; 0 where not trained on; null for held-out prompts
        pa.field("old_advantage", pa.float64()),
        pa.field("new_advantage", pa.float64()),
        pa.field("sides", pa.string()),  # old and new sign of the advantage: "+-" was encouraged, would be discouraged
        pa.field("old_suspect", pa.string()),  # a high reward, and: wrong, length, repetition
        pa.field("new_suspect", pa.string()),
    ),
    key=("iteration", "heldout", *KEY),
    families=(("reward_", pa.float64()), ("status_", pa.string()), ("note_", pa.string())),
)

RESCORED_REWARDS = Table(
    "rescored_rewards",
    (
        pa.field("iteration", pa.int32()),  # null: all of them
        _required("heldout", pa.bool_()),
        _required("reward", pa.string()),  # old, new, or the name of one of the other rewards
        _required("rows", pa.int64()),
        _required("missing", pa.int64()),  # rows without a value
        # correlations are those with the old one
        *(pa.field(name, pa.float64()) for name in ("mean", "std", "correlation", "rank_correlation")),
        _required("groups", pa.int64()),  # of two completions or more that have a value
        _required("constant_groups", pa.int64()),
    ),
    key=("iteration", "heldout", "reward"),
)

RESCORED_ITERATIONS = Table(
    "rescored_iterations",
    (
        pa.field("iteration", pa.int32()),  # null: all of them
        _required("heldout", pa.bool_()),
        _required("rows", pa.int64()),
        pa.field("advantage_correlation", pa.float64()),
        # completions whose advantage changes its sign, or comes from or to 0
        *(_required(name, pa.int64()) for name in ("up", "down", "gained", "lost")),
        # suspects
        *(_required(name, pa.int64()) for name in ("old_wrong", "old_length", "old_repetition")),
        *(_required(name, pa.int64()) for name in ("new_wrong", "new_length", "new_repetition")),
    ),
    key=("iteration", "heldout"),
)

EVALUATION = Table(
    "evaluation",
    (
        _required("prompt_id", pa.string()),
        _required("task", pa.string()),
        _required("samples", pa.int32()),
        _required("successes", pa.int32()),
        pa.field("reward_mean", pa.float64()),
        pa.field("majority_answer", pa.string()),
        pa.field("majority_correct", pa.bool_()),
    ),
    key=("prompt_id",),
    families=(("pass_at_", pa.float64()),),
)
