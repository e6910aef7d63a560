"""Answers and their log-probabilities: generation and scoring agree, in any padding and in any
parts.
"""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM

from tests.trainers.rollouts.vllm_stand_in import scored
from trainers.ppo.rollout import (
    answer_log_probs,
    batches_of,
    gather_answers,
    scatter_answers,
    tokens_at_once,
)
from trainers.rollouts import Answers, Sampling
from trainers.rollouts import transformers_engine as module
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.step.answer_loss import add_hidden_call

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]


@pytest.fixture(scope="module")
def model(toy_model):
    loaded = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    add_hidden_call(loaded)
    return loaded


def engine_of(model):
    return TransformersEngine(lambda: nullcontext(model), models=lambda: [model])


def write(model, **keys):
    torch.manual_seed(0)
    sampling = Sampling(**{"limit": 10, "temperature": 0.7, "stops": [2], **keys})
    return engine_of(model).generate(PROMPTS, sampling)


def test_answers_end_at_the_first_stop_token_and_keep_it(model):
    """A stop token is the last of its answer; an answer without one has the full length."""
    answers = write(model, stops=[2, 10, 11, 12, 13], limit=20)
    assert any(answers.ended)
    stops = {2, 10, 11, 12, 13}
    assert [ids[-1] in stops for ids in answers.ids] == answers.ended
    assert not any(stops & set(ids[:-1]) for ids in answers.ids)
    assert all(
        ended or len(ids) == 20 for ids, ended in zip(answers.ids, answers.ended, strict=True)
    )


def test_parts_hold_prompts_of_similar_length(model, monkeypatch):
    """Answers in parts: the longest prompts first, each answer back in its place, greedy ones the
    same as all at once.
    """
    engine, greedy = engine_of(model), Sampling(limit=6, stops=[2], temperature=0)
    together = engine.generate(PROMPTS, greedy)
    lengths, real = [], module.generate_batch

    def watched(model, prompts, *others, **keys):
        lengths.append([len(prompt) for prompt in prompts])
        return real(model, prompts, *others, **keys)

    monkeypatch.setattr(module, "generate_batch", watched)
    monkeypatch.setattr(engine, "rows_at_once", lambda rows, limit: 2)
    parts = engine.generate(PROMPTS, greedy)
    assert lengths == [[7, 3], [2]]
    assert (parts.ids, parts.ended, parts.prompts) == (together.ids, together.ended, PROMPTS)
    assert engine.generate(PROMPTS, greedy, n=2).prompts == [one for one in PROMPTS for _ in "ab"]


def test_a_gpu_gets_parts_of_so_many_tokens_that_it_is_busy():
    """At a vocabulary of 152,000 words the host takes 110 tokens at a time, a GPU 2,048; of a small
    vocabulary both take all that 64 MiB hold.
    """
    found = [tokens_at_once(words, on) for words in (152_064, 4096) for on in ("cpu", "cuda")]
    assert found == [110, 2048, 4096, 4096]


def test_log_probs_are_those_of_the_plain_model(model):
    """log softmax of the model's own logits at the place before each token, whatever the padding
    of its batch.
    """
    answers = write(model)
    batches = batches_of(answers, 2, pad_id=0, device="cpu")
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2]
    with torch.no_grad():
        found = [answer_log_probs(model, batch, 1.0)[0] for batch in batches]
    table = scatter_answers(batches, found).tolist()
    for row, wanted in zip(table, scored(model, answers, 1.0), strict=True):
        assert row[: len(wanted)] == pytest.approx(wanted, rel=0, abs=1e-5)


def test_a_model_s_own_generation_settings_take_no_part(model, monkeypatch):
    """top_k 1 and a repetition penalty in the model's settings would draw from another
    distribution: they are set aside, and stay as they were.
    """
    before = write(model)
    monkeypatch.setattr(model.generation_config, "top_k", 1)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.5)
    assert write(model).ids == before.ids
    assert model.generation_config.top_k == 1


def test_tables_and_batches_are_each_others_inverse():
    """What is laid out as a table and taken again is what it was."""
    answers = Answers([[1], [1, 3]], [[5, 6, 2], [7]], [True, False])
    (batch,) = batches_of(answers, 2, pad_id=0, device="cpu")
    assert batch.rows == [1, 0]
    assert batch.targets_N.tolist() == [7, 5, 6, 2]
    table = scatter_answers([batch], [torch.arange(1.0, 5.0)])
    assert table.tolist() == [[2.0, 3.0, 4.0], [1.0, 0.0, 0.0]]
    assert gather_answers(table, batch).tolist() == [1.0, 2.0, 3.0, 4.0]
