"""The vLLM engine itself: what it draws is what the policy says, whatever came before, and every fault is an error.

One engine serves most of the tests; a test that ends its process leaves the next one to start it again.
"""

import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.errors import EngineError, ModelError
from stages.contract.machine import Machine
from stages.contract.paths import RunPaths
from stages.contract.progress import no_progress
from stages.contract.workspace import Workspace
from stages.model.load import load_model, load_tokenizer
from stages.sample.collect import collect
from stages.sample.config import SampleConfig, SamplingConfig
from stages.sample.token_sampling import distribution
from stages.sample.transformers_engine import TransformersSampler
from stages.sample.vllm_engine import Probe, VllmSampler, check_probe, probe_tokens
from stages.warmstart.new_model import character_tokenizer
from tests.sample.policies import check_endings, make_policy, reported, stirred, trainer_logprobs

ROOT = Path(__file__).parents[2]
PROMPTS_ = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [8, 9, 10], [20, 21], [*range(5, 40)]]
SEEDS = [[100 * p + i for i in range(4)] for p in range(len(PROMPTS_))]
STOP = frozenset({1, 30, 31})
SAMPLING = SamplingConfig(max_tokens=20)
NEAR = 1e-4
"""Nats; float32 on both sides."""


def config(**engine):
    return SampleConfig.model_validate(
        {
            "engine": {"type": "vllm", "cache_gib": 0.25} | engine,
            "max_prompt_tokens": 512,
            "sampling": {"max_tokens": 512},
        }
    )


@pytest.fixture(scope="module")
def engine():
    sampler = VllmSampler(config(), Machine(threads=1))
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def policies(tiny_policy, tmp_path_factory):
    """Six policies of one shape, the first of them nearly uniform, the others not."""
    folder = tmp_path_factory.mktemp("policies")
    return [tiny_policy, *(stirred(tiny_policy, folder / str(i), seed=i) for i in range(1, 6))]


@pytest.fixture(scope="module")
def tied_policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    first = make_policy(folder / "0", context=64, tied=True)
    return [first, *(stirred(first, folder / str(i), seed=i) for i in range(1, 6))]


@pytest.fixture(scope="module")
def long_policy(tmp_path_factory):
    """One with room for a thousand tokens."""
    return make_policy(tmp_path_factory.mktemp("long") / "policy", context=1024)


def load(engine, policy):
    engine.load_policy(policy, str(policy))


def group_of(pid):
    """Process ids of a process group, but for those that only wait to be collected."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == pid and state not in {"Z", "X"}:
            found.append(int(path.parent.name))
    return found


def gone(pid):
    deadline = time.monotonic() + 60
    while group_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not group_of(pid)


def workers():
    """Sampler processes that this process has started and not ended."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in children if "vllm_worker" in Path(f"/proc/{pid}/cmdline").read_text()}


# Weights that change


def changes_of_weights(engine, policies):
    """Walks through the policies and back to the first; what is said of each has to be of it and of no other."""
    load(engine, policies[0])
    pids, first = engine.pids, engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    for before, policy in itertools.pairwise(policies):
        load(engine, policy)
        drawn = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
        assert (reported(drawn) - trainer_logprobs(policy, PROMPTS_, drawn)).abs().max() < NEAR
        assert (reported(drawn) - trainer_logprobs(before, PROMPTS_, drawn)).abs().max() > 1
        assert engine.pids == pids
    load(engine, policies[0])
    assert engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP) == first
    assert engine.pids == pids


def test_five_changes_of_weights_are_exact_and_keep_the_process(engine, policies):
    changes_of_weights(engine, policies)


def test_the_policy_that_is_loaded_is_not_loaded_again_whatever_its_folder_says_now(engine, policies, tmp_path):
    load(engine, policies[1])
    drawn = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    engine.load_policy(tmp_path / "not there", str(policies[1]))
    assert engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP) == drawn


# The same seeds give the same tokens


def test_batch_and_order_change_neither_tokens_nor_log_probabilities(engine, policies):
    load(engine, policies[1])
    together = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert len({tuple(c.tokens) for group in together for c in group}) > 20  # they are not all the same
    assert engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP) == together
    assert engine.generate(PROMPTS_[::-1], SEEDS[::-1], SAMPLING, STOP)[::-1] == together
    for i in (4, 0, 5):
        assert engine.generate([PROMPTS_[i]], [SEEDS[i]], SAMPLING, STOP) == [together[i]]
        assert engine.generate([PROMPTS_[i]], [SEEDS[i][2:3]], SAMPLING, STOP) == [together[i][2:3]]
    many = engine.generate(PROMPTS_ * 20, SEEDS * 20, SAMPLING, STOP)  # 480: more than are drawn at a time
    assert many == together * 20


def test_a_group_may_be_of_any_size_and_a_seed_may_come_twice(engine, policies):
    load(engine, policies[1])
    drawn = engine.generate([PROMPTS_[0], PROMPTS_[1], PROMPTS_[0]], [[7, 8, 7], [9], [8]], SAMPLING, STOP)
    assert [len(group) for group in drawn] == [3, 1, 1]
    assert drawn[0][0] == drawn[0][2] != drawn[0][1] == drawn[2][0]


def test_it_says_how_many_completions_are_done(engine, policies):
    load(engine, policies[1])
    told = []
    engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP, lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {24}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (24, 24)


# The distribution

CUT = [
    SamplingConfig(max_tokens=20, temperature=0.6),
    SamplingConfig(max_tokens=20, temperature=1.3, top_k=7),
    SamplingConfig(max_tokens=20, top_p=0.8),
    SamplingConfig(max_tokens=20, temperature=0.8, top_k=12, top_p=0.7),
]


@pytest.mark.parametrize("sampling", CUT, ids=["temperature", "top-k", "top-p", "all"])
def test_log_probabilities_are_of_the_distribution_that_was_sampled_from(engine, policies, sampling):
    load(engine, policies[2])
    drawn = engine.generate(PROMPTS_, SEEDS, sampling, STOP)
    assert (reported(drawn) - trainer_logprobs(policies[2], PROMPTS_, drawn, sampling)).abs().max() < NEAR
    assert (reported(drawn) - trainer_logprobs(policies[2], PROMPTS_, drawn)).abs().max() > 0.1


def test_greedy_tokens_are_the_most_likely_with_the_models_own_log_probabilities(engine, policies):
    load(engine, policies[2])
    greedy = SamplingConfig(max_tokens=12, temperature=0)
    drawn = engine.generate(PROMPTS_, [[3, 4]] * len(PROMPTS_), greedy, frozenset({1}))
    here = TransformersSampler(batch_size=64, device="cpu")
    load(here, policies[2])
    there = here.generate(PROMPTS_, [[3, 4]] * len(PROMPTS_), greedy, frozenset({1}))
    assert [[c.tokens for c in group] for group in drawn] == [[c.tokens for c in group] for group in there]
    assert (reported(drawn) - trainer_logprobs(policies[2], PROMPTS_, drawn)).abs().max() < NEAR


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(max_tokens=1), *(s.model_copy(update={"max_tokens": 1}) for s in CUT)]
)
def test_frequencies_of_a_first_token_follow_the_distribution(engine, policies, sampling):
    # Of 2,000 draws a share p has the standard error sqrt(p(1-p)/2000), 0.011 at most; 98 shares stay within 4.5.
    load(engine, policies[2])
    prompt, draws = PROMPTS_[2], 2000
    [group] = engine.generate([prompt], [[*range(draws)]], sampling, frozenset({1}))
    with torch.no_grad():
        logits = load_model(policies[2], "cpu")(torch.tensor([prompt])).logits[0, -1:]
    share = distribution(logits, sampling)[0].exp().double().numpy()
    counted = np.bincount([c.tokens[0] for c in group], minlength=len(share)) / draws
    limit = 4.5 * np.sqrt(share * (1 - share) / draws) + 1 / draws
    assert counted[share == 0].sum() == 0
    assert (np.abs(counted - share) <= limit).all()
    assert (np.abs(1 / len(share) - share) > limit).sum() > 10  # equal shares would not pass


# Where a completion ends


def test_a_completion_ends_with_a_stop_token_or_at_the_limit(engine, policies):
    load(engine, policies[0])
    check_endings(engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP), STOP, limit=20)


def test_it_ends_at_the_tokens_it_was_told_and_at_no_others(engine, policies):
    load(engine, policies[0])
    seeds = [[*range(100)]]
    free = engine.generate(PROMPTS_[:1], seeds, SAMPLING, frozenset())[0]
    assert {(c.finish_reason, len(c.tokens)) for c in free} == {("length", 20)}
    assert any(1 in c.tokens for c in free)  # the tokenizer's end token, which nobody has named here
    ended = engine.generate(PROMPTS_[:1], seeds, SAMPLING, frozenset({1, 50}))[0]
    for one, other in zip(free, ended, strict=True):
        ends = [i for i, token in enumerate(one.tokens) if token in {1, 50}]
        assert other.tokens == one.tokens[: ends[0] + 1 if ends else 20]
        assert other.finish_reason == ("stop" if ends else "length")


def test_a_text_that_ends_a_completion_keeps_the_tokens_up_to_its_last_one(engine, policies):
    """Both engines keep just the tokens up to the one that completes the text."""
    load(engine, policies[2])
    here = TransformersSampler(batch_size=64, device="cpu")
    load(here, policies[2])
    tokenizer = load_tokenizer(policies[2])
    greedy = SamplingConfig(max_tokens=20, temperature=0)
    alone = [[0]] * len(PROMPTS_)
    texts = [tokenizer.decode(g[0].tokens) for g in engine.generate(PROMPTS_, alone, greedy, frozenset({1}))]
    stop = texts[0][4:6]
    ending = greedy.model_copy(update={"stop": (stop, "never said")})
    drawn, there = (each.generate(PROMPTS_, alone, ending, frozenset({1})) for each in (engine, here))
    for text, [one], [other] in zip(texts, drawn, there, strict=True):
        length = text.index(stop) + len(stop) if stop in text else len(text)
        assert tokenizer.decode(one.tokens) == text[:length]
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=NEAR)
    assert drawn[0][0].finish_reason == "stop"


def test_a_sampled_completion_goes_on_as_it_would_until_the_text_is_said(engine, policies):
    load(engine, policies[0])
    tokenizer = load_tokenizer(policies[0])
    seeds = [[*range(200)]]
    sampling = SamplingConfig(max_tokens=30)
    [free] = engine.generate(PROMPTS_[:1], seeds, sampling, frozenset({1}))
    stops = ("a", "+7", "zz")
    [ended] = engine.generate(PROMPTS_[:1], seeds, sampling.model_copy(update={"stop": stops}), frozenset({1}))
    count = 0
    for one, other in zip(free, ended, strict=True):
        lengths = range(1, len(one.tokens) + 1)
        says = (
            n for n in lengths if any(s in tokenizer.decode(one.tokens[:n], skip_special_tokens=True) for s in stops)
        )
        length = next(says, len(one.tokens))
        assert (other.tokens, other.logprobs) == (one.tokens[:length], one.logprobs[:length])
        count += length < len(one.tokens)
    assert count > 20


# Broken policies, which the running engine never sees


def drop_config(folder):
    (folder / "config.json").unlink()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit(folder, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_tensor(folder):
    edit(folder, lambda tensors: tensors.pop("model.norm.weight"))


def reshape_tensor(folder):
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}))


@pytest.mark.parametrize("spoil", [drop_config, truncate, lose_tensor, reshape_tensor])
def test_a_broken_folder_is_refused_and_the_engine_stays_ready_for_a_whole_one(engine, policies, tmp_path, spoil):
    load(engine, policies[1])
    pids, before = engine.pids, engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    folder = tmp_path / "broken"
    shutil.copytree(policies[2], folder)
    spoil(folder)
    with pytest.raises(ModelError, match=str(folder)):
        load(engine, folder)
    with pytest.raises(AssertionError, match="load_policy comes first"):  # not with the old weights
        engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    load(engine, policies[1])
    assert engine.pids == pids
    assert engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP) == before


# Prompts that cannot be answered, as the stage meets them


def asked_of(engine, policy, folder, contents):
    """What `collect` makes of some prompts; the table and the desk."""
    prompts = tables.frame(
        PROMPTS,
        {
            "prompt_id": [f"p{i}" for i in range(len(contents))],
            "messages": [[{"role": "user", "content": content}] for content in contents],
            "format": ["text"] * len(contents),
            "task": ["sums"] * len(contents),
            "answer": [None] * len(contents),
            "metadata": ["{}"] * len(contents),
            "source": [None] * len(contents),
            "level": [None] * len(contents),
        },
    )
    desk = Workspace(RunPaths(folder / "run"), folder / "run" / "out")
    settings = config().model_copy(update={"sampling": SamplingConfig(max_tokens=10), "max_prompt_tokens": 50})
    rollouts = collect(desk, prompts, policy, engine, settings, 2, lambda name, i: int(name[1:]) * 10 + i, no_progress)
    return rollouts, desk


def test_prompts_that_are_too_long_or_empty_are_dropped_and_counted_before_the_engine_sees_them(
    engine, policies, tmp_path
):
    rollouts, desk = asked_of(engine, policies[1], tmp_path, ["1+2=", "", "9" * 51, "9" * 50, "9" * 400])
    assert desk.dropped == {"prompt longer than 50 tokens": 2, "empty prompt": 1}
    assert rollouts["prompt_id"].to_list() == ["p0", "p0", "p3", "p3"]
    assert rollouts["prompt_tokens"].list.len().to_list() == [4, 4, 50, 50]
    drawn = engine.generate([[*row] for row in rollouts["prompt_tokens"]], [[0], [1], [30], [31]], SAMPLING, STOP)
    for row, [completion] in zip(rollouts["completion_tokens"], drawn, strict=True):
        same = min(len(row), len(completion.tokens))
        assert row.to_list()[:same] == completion.tokens[:same]
    assert desk.notes["engine"]["vllm"].startswith("0.")
    assert desk.notes["engine"]["pids"] == engine.pids


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(engine, policies, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(policies[1], folder)
    more = character_tokenizer("".join(map(chr, range(32, 127))) + "\nåäö")
    more.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"token id \d+, the model's vocabulary ends at 97"):
        asked_of(engine, folder, tmp_path, ["1+2=", "åäö"])
    rollouts, _ = asked_of(engine, policies[1], tmp_path, ["1+2="])
    assert rollouts.height == 2


# Several engines, and raw log-probabilities: another engine each


@pytest.fixture(scope="module")
def pair():
    """Two engines that report the model's own log-probabilities."""
    settings = config(engines=2)
    raw = settings.sampling.model_copy(update={"logprobs": "raw"})
    sampler = VllmSampler(settings.model_copy(update={"sampling": raw}), Machine(threads=2))
    yield sampler
    sampler.close()


def test_two_engines_draw_what_one_does(engine, pair, policies):
    """At temperature 1 the raw log-probabilities are the processed ones, to the last bit."""
    load(engine, policies[1])
    load(pair, policies[1])
    assert len({*pair.pids, *engine.pids}) == 3
    told = []
    drawn = pair.generate(PROMPTS_, SEEDS, SAMPLING, STOP, lambda done, total: told.append((done, total)))
    assert drawn == engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert told[-1] == (24, 24)
    # fewer prompts than engines: one has nothing to do
    assert pair.generate(PROMPTS_[:1], SEEDS[:1], SAMPLING, STOP) == drawn[:1]


def test_both_engines_change_their_weights(pair, policies):
    load(pair, policies[1])
    pids = pair.pids
    load(pair, policies[3])
    drawn = pair.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert (reported(drawn) - trainer_logprobs(policies[3], PROMPTS_, drawn)).abs().max() < NEAR
    assert pair.pids == pids


def test_raw_log_probabilities_are_the_models_own(pair, policies):
    load(pair, policies[2])
    cut = SamplingConfig(max_tokens=20, temperature=0.6, top_k=7, top_p=0.9, logprobs="raw")
    drawn = pair.generate(PROMPTS_, SEEDS, cut, STOP)
    own = trainer_logprobs(policies[2], PROMPTS_, drawn)
    assert (reported(drawn) - own).abs().max() < NEAR
    processed = trainer_logprobs(policies[2], PROMPTS_, drawn, cut.model_copy(update={"logprobs": "processed"}))
    assert processed.isfinite().all()  # all tokens are of the cut distribution all the same
    assert (processed - own).abs().max() > 0.1


def test_one_engine_of_two_that_dies_ends_both(pair, policies):
    load(pair, policies[1])
    one, other = pair.pids
    os.kill(other, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL"):
        pair.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert pair.pids == []
    assert gone(one)
    assert gone(other)


# The probe


def probe(expected, drawn):
    return Probe(np.array(expected), np.array(drawn))


def test_the_probe_allows_what_the_tolerance_does():
    before = probe([-1.5, -2.5], [-1.5, -2.5])
    for former in (before, None):
        check_probe(probe([-1.0, -2.0], [-1.0, -2.009]), former, 0.01)
        with pytest.raises(EngineError, match=r"differ from the trainer's by up to 0\.02 nats, 0\.01 are allowed"):
            check_probe(probe([-1.0, -2.0], [-1.0, -2.02]), former, 0.01)


def test_a_probe_that_is_no_number_does_not_pass():
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(EngineError, match="it computes another model"):
            check_probe(probe([-1.0, -2.0], [-1.0, wrong]), None, 0.5)
    with pytest.raises(EngineError, match="it computes another model"):
        check_probe(probe([math.nan, -2.0], [-1.0, -2.0]), None, 0.5)


def test_old_weights_are_told_also_where_a_coarse_tolerance_would_pass_them():
    # bfloat16 is allowed 0.5; the trainer's policies are 0.1 apart, and the engine says what it said before.
    before = probe([-1.1, -2.1], [-1.13, -2.02])
    with pytest.raises(EngineError, match=r"have moved by up to 0\.1 nats, the engine's by 0\b.*old weights"):
        check_probe(probe([-1.0, -2.0], [-1.13, -2.02]), before, 0.5)
    # rounding of 0.1 brings the engine nearer to the former policy, but it has moved
    check_probe(probe([-1.0, -2.0], [-1.08, -2.1]), before, 0.5)


def test_policies_too_near_to_each_other_cannot_be_told_apart_and_pass():
    # They differ by 0.04, less than a tenth of the tolerance: in bfloat16 such a change may be rounded away.
    check_probe(probe([-1.0, -2.0], [-1.1, -2.1]), probe([-1.04, -2.04], [-1.1, -2.1]), 0.5)


def test_the_text_of_the_probe_fits_the_model_and_is_always_the_same():
    assert probe_tokens(98, 64) == probe_tokens(98, 1024)
    assert len(probe_tokens(98, 1024)) == 32
    assert len(probe_tokens(98, 8)) == 7
    assert set(probe_tokens(3, 64)) == {0, 1, 2}


def test_an_engine_that_silently_keeps_its_weights_is_found_out(engine, policies, monkeypatch):
    load(engine, policies[1])
    [pid], ask = engine.pids, engine._ask

    def deaf(command, arguments, limit):
        return [] if command == "load" else ask(command, arguments, limit)

    monkeypatch.setattr(engine, "_ask", deaf)
    with pytest.raises(EngineError, match=r"differ from the trainer's by up to .* it computes another model"):
        load(engine, policies[2])
    assert engine.pids == []
    assert gone(pid)
    monkeypatch.undo()
    load(engine, policies[2])
    drawn = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert (reported(drawn) - trainer_logprobs(policies[2], PROMPTS_, drawn)).abs().max() < NEAR


# Prompts that cannot be answered, given to the engine all the same

UNANSWERABLE = {
    "empty": ([[5], []], "empty"),
    "outside of the vocabulary": ([[5], [98]], "98"),
    "longer than the context": ([[5], [6] * 65], "65"),
}


@pytest.mark.parametrize("name", UNANSWERABLE)
def test_a_prompt_that_cannot_be_answered_is_an_error(engine, policies, name):
    prompts, told = UNANSWERABLE[name]
    load(engine, policies[1])
    [pid] = engine.pids
    with pytest.raises(EngineError, match=told):
        engine.generate(prompts, [[1], [2]], SAMPLING, STOP)
    assert engine.pids == []
    assert gone(pid)


# Policies of another shape


def test_tied_embeddings_are_another_shape_and_change_as_exactly(engine, tied_policies):
    """vLLM keeps a packed copy of a tied output head, which a change of weights has to renew."""
    changes_of_weights(engine, tied_policies)


def test_a_policy_of_another_shape_gets_a_new_process(engine, tied_policies, long_policy):
    load(engine, tied_policies[0])
    [pid] = engine.pids
    load(engine, long_policy)
    assert engine.pids != [pid]
    assert gone(pid)
    assert (engine.context_length, engine.vocabulary) == (1024, 98)
    drawn = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    assert (reported(drawn) - trainer_logprobs(long_policy, PROMPTS_, drawn)).abs().max() < NEAR


def test_a_groups_prompt_is_computed_once_and_nothing_of_it_is_left_for_later_calls_or_weights(
    engine, long_policy, tmp_path
):
    load(engine, long_policy)
    engine.rest()
    prompt = [90 - i % 60 for i in range(70)]  # two blocks of 32 that can be shared, and a rest that cannot
    seeds = [[*range(8)]]
    before = engine.generate([prompt], seeds, SAMPLING, STOP)
    assert engine.rest()["prefix_cache_tokens"] == 7 * 64
    assert engine.rest()["prefix_cache_tokens"] == 0  # it was told already
    assert engine.generate([prompt], seeds, SAMPLING, STOP) == before
    assert engine.rest()["prefix_cache_tokens"] == 7 * 64, "a call finds nothing of the one before"
    other = stirred(long_policy, tmp_path / "other", seed=9)
    load(engine, other)
    drawn = engine.generate([prompt], seeds, SAMPLING, STOP)
    assert engine.rest()["prefix_cache_tokens"] == 7 * 64
    assert (reported(drawn) - trainer_logprobs(other, [prompt], drawn)).abs().max() < NEAR


# Processes that die or hang

MANY = [[5 + i % 60] for i in range(256)]
LONG = SamplingConfig(max_tokens=1000)


def test_one_that_is_killed_in_the_middle_is_an_error_and_another_goes_on_with_the_same_tokens(engine, long_policy):
    load(engine, long_policy)
    before = engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
    [pid] = engine.pids
    told = []

    def kill(done, total):
        if not told:
            os.kill(pid, signal.SIGKILL)
        told.append((done, total))

    with pytest.raises(EngineError, match=r"was killed by signal 9 \(SIGKILL\)"):
        engine.generate(MANY, [[i] for i in range(256)], LONG, frozenset(), kill)
    assert told[-1][0] < 256
    assert engine.pids == []
    assert gone(pid)
    load(engine, long_policy)
    assert engine.pids != [pid]
    assert engine.generate(PROMPTS_, SEEDS, SAMPLING, STOP) == before  # bit-equal over two starts


def test_one_that_hangs_is_ended_after_the_limit_of_silence(engine, long_policy, monkeypatch):
    load(engine, long_policy)
    [pid] = engine.pids
    monkeypatch.setattr(engine, "_config", engine._config.model_copy(update={"silence_limit": 2.0}))
    with pytest.raises(EngineError, match=r"no sign of life for 2 s while it was asked to generate"):
        engine.generate(
            MANY, [[i] for i in range(256)], LONG, frozenset(), lambda done, total: os.kill(pid, signal.SIGSTOP)
        )
    assert engine.pids == []
    assert gone(pid)


def test_it_draws_only_from_a_policy_that_is_loaded(engine, long_policy):
    fresh = VllmSampler(config(), Machine(threads=1))
    engine.close()
    for sampler in (fresh, engine):
        with pytest.raises(AssertionError, match="load_policy comes first"):
            sampler.generate(PROMPTS_, SEEDS, SAMPLING, STOP)
        assert sampler.pids == []
    fresh.close()


def test_too_little_memory_says_what_to_change_and_leaves_nothing(policies):
    before = workers()
    sampler = VllmSampler(config(cache_gib=0.00005), Machine(threads=1))  # 54 kB: one block of 32 tokens, 64 are wanted
    with pytest.raises(EngineError, match=r"lacks memory: sample\.engine\.cache_gib is 5e-05.* 64 tokens"):
        load(sampler, policies[0])
    assert sampler.pids == []
    assert workers() == before


PARENT = """
import sys
from pathlib import Path
from stages.contract.machine import Machine
from stages.sample.config import SampleConfig, SamplingConfig
from stages.sample.vllm_engine import VllmSampler

settings = SampleConfig.model_validate(
    {"engine": {"type": "vllm", "cache_gib": 0.25}, "max_prompt_tokens": 512, "sampling": {"max_tokens": 512}}
)
engine = VllmSampler(settings, Machine(threads=1))
engine.load_policy(Path(sys.argv[1]), "policy")
print(*engine.pids, flush=True)
while True:
    engine.generate([[5]] * 256, [[i] for i in range(256)], SamplingConfig(max_tokens=1000), frozenset())
"""


def test_it_ends_with_its_parent_that_is_killed(long_policy):
    command = [sys.executable, "-c", PARENT, str(long_policy)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            pid = int(parent.stdout.readline())
            assert group_of(pid)
        finally:
            parent.kill()
    assert gone(pid)
