"""Which prompts an iteration takes: pass after pass, by weights, by levels, by what came of them before."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.errors import ConfigError
from stages.sample.config import SampleConfig
from stages.sample.curriculum import reads, successes
from stages.sample.plan import plan
from stages.sample.prompt_selection import choose
from stages.sample.quotas import portions

LEVELS = {"type": "levels", "every": 2, "rehearsal": 0.25}


def prompts(**sources):
    """A table: of each source so many prompts, named after it, or its levels."""
    rows = []
    for source, levels in sources.items():
        each = [None] * levels if isinstance(levels, int) else levels
        rows += [{"prompt_id": f"{source}{i}", "source": source, "level": level} for i, level in enumerate(each)]
    return pl.DataFrame(rows, schema={"prompt_id": pl.String, "source": pl.String, "level": pl.Int32})


def taken(table, k, seed=1, since=0, scores=None, **config):
    """Ids of the prompts of an iteration."""
    chosen = choose(table, SampleConfig.model_validate(config), seed, k, since, scores)
    return table["prompt_id"][chosen.first].to_list()


def scores(**shares):
    """A table of scores: of each prompt a group of four with so many successes."""
    rows = [
        {"prompt_id": prompt, "sample": i, "reward_math": 1.0 if i < right else 0.25, "reward_other": 1.0}
        for prompt, right in shares.items()
        for i in range(4)
    ]
    return pl.DataFrame(rows).with_columns(status_math=pl.lit("ok"), status_other=pl.lit("ok"))


def failed(table):
    """The scores, but that the first reward has no verdict."""
    return table.with_columns(reward_math=pl.lit(None, pl.Float64), status_math=pl.lit("error"))


# Passes


def test_each_pass_takes_every_prompt_once_and_the_next_in_another_order():
    table = prompts(a=12)
    passes = [[i for k in range(3 * n + 1, 3 * n + 4) for i in taken(table, k, prompts=4)] for n in range(3)]
    assert all(sorted(one) == sorted(table["prompt_id"]) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert taken(table, 2, prompts=4) == taken(table, 2, prompts=4) != taken(table, 2, seed=2, prompts=4)


def test_a_rest_is_left_out_so_that_no_iteration_has_a_prompt_twice():
    for k in range(1, 20):
        assert len(set(taken(prompts(a=10), k, prompts=4))) == 4


def test_passes_over_all_prompts_begin_anew_where_some_were_added():
    table = prompts(a=12)
    drawn = [taken(table, k, since=5, prompts=4) for k in range(5, 11)]
    for one in (drawn[:3], drawn[3:]):
        assert sorted(prompt for part in one for prompt in part) == sorted(table["prompt_id"])
    assert drawn[0] != taken(table, 1, prompts=4)


def test_the_others_are_those_that_were_not_taken_in_an_order_of_the_iterations_own():
    table, config = prompts(a=9), SampleConfig(prompts=2, rounds=3)
    chosen, again, later = (choose(table, config, 3, k) for k in (2, 2, 3))
    assert sorted(chosen.first + chosen.more) == list(range(9))
    assert chosen == again
    assert [row for row in chosen.more if row in later.more] != [row for row in later.more if row in chosen.more]
    assert choose(table, SampleConfig(prompts=2), 3, 2).more == []


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match=r"sample.prompts: iteration 1 is to take 5 prompts, .* among 4: lower"):
        taken(prompts(a=4), 1, prompts=5)


# Weights


def test_portions_by_hand():
    # turns of a at 1/6, 3/6, 5/6, 7/6, …, of b at 1/2, 3/2, …: a a b a a a b a (a first where both are due)
    shares = {"a": 3, "b": 1}
    found = [tuple(portions(shares, n).values()) for n in range(9)]
    assert found == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (4, 1), (5, 1), (5, 2), (6, 2)]


WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(max_examples=60)
@given(WEIGHTS, st.integers(0, 400), st.integers(0, 200))
def test_portions_keep_to_their_shares_and_never_shrink(values, total, more):
    weights = {str(i): value for i, value in enumerate(values)} | {"never": 0.0}
    few, many = portions(weights, total), portions(weights, total + more)
    assert sum(few.values()) == total and few["never"] == many["never"] == 0
    assert all(many[s] >= few[s] for s in weights)
    for s, weight in weights.items():
        assert abs(few[s] - total * weight / sum(values)) <= 1 + len(values) / 2


def test_each_source_gives_its_share_and_each_of_its_prompts_once_in_a_pass():
    table = prompts(sums=12, code=4, none=9)
    weights = {"sums": 3, "code": 1, "none": 0}
    drawn = [taken(table, k, prompts=8, weights=weights) for k in range(1, 5)]
    assert [sum(name.startswith("code") for name in part) for part in drawn] == [2, 2, 2, 2]
    assert all(len(set(part)) == 8 for part in drawn)
    for passed in (drawn[:2], drawn[2:]):  # two iterations are one pass of either source
        assert sorted(name for part in passed for name in part) == sorted(table["prompt_id"][:16])
    assert drawn[:2] != drawn[2:]
    assert (
        taken(table, 3, prompts=8, weights=weights) == drawn[2] != taken(table, 3, seed=2, prompts=8, weights=weights)
    )


def test_the_order_in_which_weights_are_named_decides_nothing():
    table = prompts(sums=12, code=12)
    one, other = ({"sums": 1, "code": 1}, {"code": 1, "sums": 1})
    for k in (1, 2):
        assert taken(table, k, prompts=5, weights=one) == taken(table, k, prompts=5, weights=other)


def test_a_change_of_one_weight_leaves_the_order_of_the_other_sources():
    table = prompts(sums=40, code=40)
    before = taken(table, 1, prompts=8, weights={"sums": 1, "code": 1})
    after = taken(table, 1, prompts=12, weights={"sums": 2, "code": 1})
    assert [name for name in before if name[0] == "c"] == [name for name in after if name[0] == "c"]


def test_passes_begin_anew_where_prompts_were_added():
    table = prompts(sums=8, code=8)
    weights = {"sums": 1, "code": 1}
    drawn = [taken(table, k, since=3, prompts=8, weights=weights) for k in (3, 4, 5, 6)]
    for passed in (drawn[:2], drawn[2:]):
        assert sorted(name for part in passed for name in part) == sorted(table["prompt_id"])


def test_a_source_with_too_few_prompts_is_named():
    table, weights = prompts(sums=12, code=1), {"sums": 3, "code": 1}
    told = (
        r"iteration 1 is to take 2 prompts of 'code', and may choose among 1: lower sample.prompts or sample.weights.c"
    )
    with pytest.raises(ConfigError, match=told):
        taken(table, 1, prompts=8, weights=weights)
    assert told[:40] in plan(table, SampleConfig(prompts=8, weights=weights), 5)["problems"][0]


def test_what_dynamic_sampling_adds_is_taken_in_turns_by_weight_and_from_open_levels():
    table = prompts(sums=[0] * 6 + [1] * 6, code=6, none=5)
    config = SampleConfig.model_validate(
        {"prompts": 4, "rounds": 2, "weights": {"sums": 1, "code": 1, "none": 0}, "curriculum": LEVELS}
    )
    chosen = choose(table, config, 1, 1)
    first, more = (table["prompt_id"][rows].to_list() for rows in (chosen.first, chosen.more))
    assert sorted(first + more) == sorted(table["prompt_id"][[*range(6), *range(12, 18)]])
    assert [name[0] for name in more] == ["c", "s"] * 4


# Levels


def test_a_level_is_opened_each_so_many_iterations_and_lower_ones_are_rehearsed():
    table = prompts(sums=[0] * 10 + [3] * 10 + [5] * 10)
    shares = {}
    for k in range(1, 8):
        rows = choose(table, SampleConfig.model_validate({"prompts": 8, "curriculum": LEVELS}), 1, k).first
        shares[k] = dict(table["level"][rows].value_counts().iter_rows())
    assert shares[1] == shares[2] == {0: 8}
    assert shares[3] == shares[4] == {3: 6, 0: 2}
    for k in (5, 6, 7):
        assert shares[k][5] == 6 and sum(shares[k].values()) == 8
    assert taken(table, 3, prompts=8, curriculum=LEVELS) != taken(table, 4, prompts=8, curriculum=LEVELS)
    levels = plan(table, SampleConfig.model_validate({"prompts": 8, "curriculum": LEVELS}), 9)["levels"]
    assert [(level["level"], level["prompts"], level["from"]) for level in levels] == [
        (0, 10, 1),
        (3, 10, 3),
        (5, 10, 5),
    ]


def test_a_level_with_few_prompts_is_filled_from_lower_ones_and_a_source_without_levels_goes_on():
    table = prompts(sums=[0] * 10 + [1] * 2, words=20)
    config = {"prompts": 16, "weights": {"sums": 1, "words": 1}, "curriculum": LEVELS}
    drawn = taken(table, 3, **config)
    assert sum(name in ("sums10", "sums11") for name in drawn) == 2
    assert sum(name.startswith("sums") for name in drawn) == 8
    words = [name for k in (1, 2) for name in taken(table, k, **config) if name.startswith("words")]
    assert len(set(words)) == 16


@pytest.mark.parametrize(("right", "opened"), [(2, 0), (3, 1)])
def test_success_at_the_highest_open_level_opens_the_next_one(right, opened):
    table = prompts(sums=[0] * 8 + [1] * 8 + [2] * 8)
    curriculum = {"type": "levels", "success": 0.75, "rehearsal": 0.0}
    config = SampleConfig.model_validate({"prompts": 4, "curriculum": curriculum})
    assert reads(config, 1) == [] and reads(config, 7) == [6]
    assert set(table["level"][choose(table, config, 1, 1).first]) == {0}
    last = {6: scores(sums0=right, sums1=right)}
    assert choose(table, config, 1, 7, scores=last, former=0).notes["curriculum"] == {"level": opened}
    # what rehearsed lower levels earned does not count, and after the highest level there is none
    last = {6: scores(sums0=4, sums8=right)}
    assert choose(table, config, 1, 7, scores=last, former=1).notes["curriculum"] == {"level": 1 + opened}
    assert choose(table, config, 1, 7, scores={6: scores(sums16=4)}, former=2).notes["curriculum"] == {"level": 2}
    # a curriculum that is new in a run begins below, whatever was drawn before it
    assert choose(table, config, 1, 7, scores={6: scores(sums8=4)}).notes["curriculum"] == {"level": 0}
    # a level that is gone from the run gives way to the one below it
    fewer = prompts(sums=[0] * 8 + [2] * 8)
    assert choose(fewer, config, 1, 7, scores={6: scores(sums0=0)}, former=1).notes["curriculum"] == {"level": 0}


def by_success(table, answers, **config):
    """The level that each of some iterations opened, whose completions `answers` scores."""
    settings = SampleConfig.model_validate(
        {"prompts": 4, "curriculum": {"type": "levels", "success": 0.75, "rehearsal": 0.0}} | config
    )
    levels, last = [], {}
    for k in range(1, 20):
        chosen = choose(table, settings, 1, k, scores=last, former=levels[-1] if levels else None)
        levels.append(chosen.notes["curriculum"]["level"])
        last = {k: answers(table[chosen.first])}
    return levels


def test_an_open_level_stays_where_nothing_of_it_was_drawn_or_judged():
    table = prompts(sums=[0] * 8 + [1] * 8 + [2] * 8, words=40)
    right = lambda drawn: scores(**dict.fromkeys(drawn["prompt_id"], 4))  # noqa: E731
    # of four prompts an iteration, sums have one in each fourth
    levels = by_success(table, right, weights={"sums": 1, "words": 15})
    assert levels == [0] * 2 + [1] * 4 + [2] * 13
    config = SampleConfig.model_validate({"prompts": 4, "curriculum": {"type": "levels", "success": 0.75}})
    down = choose(table, config, 1, 7, scores={6: failed(scores(sums8=4))}, former=1)
    assert down.notes["curriculum"] == {"level": 1}
    told = "sample.curriculum: no completion of level 1 of iteration 6 has a verdict: the level stays"
    assert down.notes["warnings"] == [told]
    assert "warnings" not in choose(table, config, 1, 7, scores={6: scores(words0=4)}, former=1).notes


def test_a_source_of_higher_levels_alone_opens_none_for_the_others():
    table = prompts(sums=[0] * 8 + [1] * 8 + [2] * 8, hard=[5] * 8)
    wrong = lambda drawn: scores(**dict.fromkeys(drawn["prompt_id"], 0))  # noqa: E731
    hard_right = lambda drawn: scores(**{name: 4 * (name[0] == "h") for name in drawn["prompt_id"]})  # noqa: E731
    for answers in (wrong, hard_right):
        assert by_success(table, answers, weights={"sums": 1, "hard": 1}) == [0] * 19
    # a level of which nothing will ever be drawn is none
    table = prompts(sums=[0] * 8 + [2] * 8, off=[1] * 8)
    right = lambda drawn: scores(**dict.fromkeys(drawn["prompt_id"], 4))  # noqa: E731
    assert by_success(table, right, weights={"sums": 1, "off": 0})[:3] == [0, 2, 2]
    config = SampleConfig.model_validate({"weights": {"sums": 1, "off": 0}, "curriculum": LEVELS, "prompts": 4})
    assert [level["level"] for level in plan(table, config, 3)["levels"]] == [0, 2]


# Success


def test_successes_by_hand():
    table = scores(a=3, b=0).with_columns(
        pl.when(pl.col("prompt_id") == "b").then(math.nan).otherwise("reward_math").alias("reward_math")
    )
    settings = SampleConfig.model_validate({"curriculum": {"type": "success"}}).curriculum
    assert dict(successes(table, settings).iter_rows()) == {"a": 0.75}  # b has no reward that counts
    lenient = settings.model_copy(update={"threshold": 0.25})
    assert dict(successes(table, lenient).iter_rows()) == {"a": 1.0}
    other = settings.model_copy(update={"reward": "other"})
    assert dict(successes(table, other).iter_rows()) == {"a": 1.0, "b": 1.0}
    assert successes(table, settings.model_copy(update={"reward": "gone"})).height == 0


def test_without_a_name_the_first_reward_that_judges_a_prompt_says_what_succeeded():
    of_b = pl.col("prompt_id") == "b"
    table = scores(a=3, b=0, c=2).with_columns(
        reward_math=pl.when(of_b).then(None).otherwise("reward_math"),
        status_math=pl.when(of_b).then(pl.lit("null")).otherwise("status_math"),
    )
    settings = SampleConfig.model_validate({"curriculum": {"type": "success"}}).curriculum
    assert dict(successes(table, settings).iter_rows()) == {"a": 0.75, "b": 1.0, "c": 0.5}
    assert dict(successes(table, settings.model_copy(update={"reward": "math"})).iter_rows()) == {"a": 0.75, "c": 0.5}
    # one that failed has no verdict, and none takes its place
    assert dict(successes(failed(table), settings).iter_rows()) == {}


def test_prompts_are_drawn_the_likelier_the_less_sure_their_outcome():
    # weights 1 (half right), 0.1 (all right), 0.1 (none), 0.1 + 0.9 · 0.75 = 0.775 (three of four), 1 (unknown)
    table = prompts(p=5)
    seen = {1: scores(p0=4, p1=0), 2: scores(p0=2, p1=4, p2=0, p3=3)}  # the later group of p0 and p1 counts
    config = SampleConfig.model_validate({"prompts": 1, "curriculum": {"type": "success"}})
    draws = 1500
    counts = np.bincount([choose(table, config, seed, 3, scores=seen).first[0] for seed in range(draws)], minlength=5)
    weights = np.array([1, 0.1, 0.1, 0.775, 1])
    expected = weights / weights.sum()
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(counts / draws - expected) < 4.5 * error).all(), counts
    notes = choose(table, config, 1, 3, scores=seen).notes["curriculum"]
    assert notes == {"prompts_with_a_history": 4, "success": (0.5 + 1 + 0 + 0.75) / 4}
    assert reads(config, 3) == [1, 2] and reads(config, 30) == [*range(20, 30)]


def test_without_a_history_all_are_alike_and_none_comes_twice():
    table = prompts(p=50)
    drawn = taken(table, 1, prompts=50, curriculum={"type": "success"})
    assert sorted(drawn) == sorted(table["prompt_id"])
    assert drawn == taken(table, 1, prompts=50, curriculum={"type": "success"}) != table["prompt_id"].to_list()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"weights": {"a": -1, "b": 2}}, "weights are 0 or more"),
        ({"weights": {"a": 0}}, "one is above 0"),
        ({"curriculum": {"type": "levels"}}, "set one of every and success"),
        ({"curriculum": {"type": "levels", "every": 2, "success": 0.5}}, "set one of every and success"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(config, told):
    with pytest.raises(ValueError, match=told):
        SampleConfig.model_validate(config)
