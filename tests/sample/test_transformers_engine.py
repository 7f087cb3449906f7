"""The transformers engine on a real model."""

import pytest
import torch

from stages.model.load import load_model
from stages.model.logprobs import token_logprobs
from stages.model.prefix_batches import collate
from stages.sample.config import SamplingConfig
from stages.sample.transformers_engine import TransformersSampler
from tests.sample.policies import check_endings, reported, stirred, trainer_logprobs

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [8, 9, 10], [20, 21]]
SEEDS = [[100 * p + i for i in range(4)] for p in range(len(PROMPTS))]
STOP = frozenset({1, 30, 31, 32})


@pytest.fixture(scope="module")
def engine(tiny_policy):
    sampler = TransformersSampler(batch_size=64, device="cpu")
    sampler.load_policy(tiny_policy, "digest")
    return sampler


def test_log_probabilities_are_those_of_the_trainer(engine, tiny_policy):
    sampling = SamplingConfig(max_tokens=20, temperature=0.8)
    drawn = engine.generate(PROMPTS, SEEDS, sampling, STOP)
    rows = [(prompt, c) for prompt, group in zip(PROMPTS, drawn, strict=True) for c in group]
    model = load_model(tiny_policy, "cpu")
    batch = collate([p for p, _ in rows], [c.tokens for _, c in rows], [0.8] * len(rows), "cpu")
    with torch.no_grad():
        trainer, _ = token_logprobs(model, batch)
    sampler = torch.tensor([value for _, c in rows for value in c.logprobs])
    assert (trainer - sampler).abs().max() < 1e-4


def test_a_completion_does_not_depend_on_what_else_is_drawn(engine, tiny_policy):
    sampling = SamplingConfig(max_tokens=20)
    together = engine.generate(PROMPTS, SEEDS, sampling, STOP)
    small = TransformersSampler(batch_size=4, device="cpu")
    small.load_policy(tiny_policy, "digest")
    for i in (4, 2, 0, 3, 1):
        [alone] = small.generate([PROMPTS[i]], [SEEDS[i]], sampling, STOP)
        assert [c.tokens for c in alone] == [c.tokens for c in together[i]]
        for one, other in zip(alone, together[i], strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_completions_of_a_group_differ_and_the_same_seed_gives_the_same(engine):
    sampling = SamplingConfig(max_tokens=20)
    [group] = engine.generate([PROMPTS[0]], [[1, 2, 3, 1]], sampling, STOP)
    assert group[0].tokens == group[3].tokens
    assert len({tuple(c.tokens) for c in group}) == 3


def test_a_completion_ends_with_its_stop_token_or_at_the_limit(engine):
    drawn = engine.generate(PROMPTS, SEEDS, SamplingConfig(max_tokens=20), STOP)
    check_endings(drawn, STOP, limit=20)


def test_greedy_decoding_is_that_of_generate(engine, tiny_policy):
    model = load_model(tiny_policy, "cpu")
    drawn = engine.generate(PROMPTS, [[0]] * len(PROMPTS), SamplingConfig(temperature=0, max_tokens=12), frozenset({1}))
    for prompt, [completion] in zip(PROMPTS, drawn, strict=True):
        ids = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
        )
        assert completion.tokens == ids[0, len(prompt) :].tolist()


def test_it_loads_again_only_for_another_digest(engine, tiny_policy):
    model = engine.model
    engine.load_policy(tiny_policy, "digest")
    assert engine.model is model
    engine.load_policy(tiny_policy, "another")
    assert engine.model is not model
    engine.load_policy(tiny_policy, "digest")


def test_a_completion_ends_with_the_token_that_completes_a_stop_text(engine):
    sampling, seeds = SamplingConfig(max_tokens=30), [[*range(200)]]
    [free] = engine.generate(PROMPTS[:1], seeds, sampling, frozenset({1}))
    stops = ("a", "+7", "zz")
    [ended] = engine.generate(PROMPTS[:1], seeds, sampling.model_copy(update={"stop": stops}), frozenset({1}))
    counted = dict.fromkeys(stops, 0)
    for one, other in zip(free, ended, strict=True):
        texts = [engine.tokenizer.decode(one.tokens[: n + 1], skip_special_tokens=True) for n in range(len(one.tokens))]
        at = next((n for n, text in enumerate(texts) if any(stop in text for stop in stops)), None)
        length = len(one.tokens) if at is None else at + 1
        assert other.tokens == one.tokens[:length]
        assert other.logprobs == pytest.approx(one.logprobs[:length], abs=1e-5)
        assert other.finish_reason == (one.finish_reason if at is None else "stop")
        for stop in stops:
            counted[stop] += at is not None and stop in texts[at]
    assert counted["a"] > 20
    assert counted["+7"] > 0


def test_a_stop_text_in_the_prompt_ends_nothing(engine):
    tokens = engine.tokenizer("a+7")["input_ids"]
    sampling = SamplingConfig(max_tokens=5)
    free = engine.generate([tokens], [[1, 2, 3]], sampling, frozenset({1}))
    assert (
        engine.generate([tokens], [[1, 2, 3]], sampling.model_copy(update={"stop": ("a+7",)}), frozenset({1})) == free
    )
    # nor does one of which the prompt holds the beginning
    follows = engine.tokenizer.decode(free[0][0].tokens[:1])
    stop = sampling.model_copy(update={"stop": ("7" + follows,)})
    assert engine.generate([tokens], [[1]], stop, frozenset({1}))[0][0].tokens == free[0][0].tokens


def test_raw_log_probabilities_are_the_models_own_and_change_no_token(tiny_policy, tmp_path):
    policy = stirred(tiny_policy, tmp_path / "policy", seed=2)
    sampler = TransformersSampler(batch_size=64, device="cpu")
    sampler.load_policy(policy, "digest")
    cut = SamplingConfig(max_tokens=20, temperature=0.6, top_k=7, top_p=0.9)
    processed = sampler.generate(PROMPTS, SEEDS, cut, STOP)
    raw = sampler.generate(PROMPTS, SEEDS, cut.model_copy(update={"logprobs": "raw"}), STOP)
    assert [[c.tokens for c in group] for group in raw] == [[c.tokens for c in group] for group in processed]
    assert (reported(raw) - trainer_logprobs(policy, PROMPTS, raw)).abs().max() < 1e-4
    assert (reported(processed) - trainer_logprobs(policy, PROMPTS, raw, cut)).abs().max() < 1e-4
    assert (reported(processed) - reported(raw)).abs().max() > 0.1


def test_the_vocabulary_and_the_context_are_the_models(engine, tiny_policy):
    config = load_model(tiny_policy, "cpu").config
    assert (engine.vocabulary, engine.context_length) == (config.vocab_size, 64) == (98, 64)


def test_the_trainers_model_is_the_one_that_draws_until_it_is_closed(tiny_policy):
    sampler = TransformersSampler(batch_size=64, device="cpu")
    sampler.load_policy(tiny_policy, "digest")
    assert sampler.trainer_model() is sampler.model
    assert sampler.rest() == {}
    sampler.close()
    with pytest.raises(AssertionError, match="load_policy comes first"):
        sampler.generate(PROMPTS, SEEDS, SamplingConfig(max_tokens=2), STOP)
