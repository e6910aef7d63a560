"""Answers and their log-probabilities: generation and scoring agree, in any padding and in any
parts.
"""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.ppo import rollout
from trainers.ppo.rollout import (
    answer_log_probs,
    answer_states,
    batches_of,
    gather_answers,
    scatter_answers,
    tokens_at_once,
)
from trainers.rollouts import Answers, Sampling
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.step.answer_loss import add_hidden_call

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]


@pytest.fixture(scope="module")
def model(toy_model):
    loaded = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    add_hidden_call(loaded)
    return loaded


def write(model, **keys):
    torch.manual_seed(0)
    engine = TransformersEngine(lambda: nullcontext(model), models=lambda: [model])
    sampling = Sampling(**{"limit": 10, "temperature": 0.7, "stops": [2], **keys})
    return engine.generate(PROMPTS, sampling)


def test_answers_end_at_the_first_stop_token_and_keep_it(model):
    """A stop token is the last of its answer; an answer without one has the full length."""
    answers = write(model, stops=[2, 10, 11, 12, 13], limit=20)
    assert any(answers.ended)
    for ids, ended in zip(answers.ids, answers.ended, strict=True):
        assert (ids[-1] in (2, 10, 11, 12, 13)) is ended
        assert not set(ids[:-1]) & {2, 10, 11, 12, 13}
        assert ended or len(ids) == 20


def test_parts_of_the_head_give_the_same_numbers_and_gradients(model, monkeypatch):
    """Log-probabilities, entropies and gradients do not depend on how many logits are held at
    once.
    """
    answers = write(model)
    (batch,) = batches_of(answers, 3, pad_id=0, device="cpu")
    results = []
    for at_once in (1000, 3):
        model.zero_grad()
        monkeypatch.setattr(rollout, "tokens_at_once", lambda *_, count=at_once: count)
        log_probs, entropy = answer_log_probs(model, batch, 1.0, with_entropy=True)
        log_probs.sum().backward()
        results.append(
            (
                log_probs.detach(),
                entropy,
                model.lm_head.weight.grad.clone(),
                model.model.layers[0].mlp.up_proj.weight.grad.clone(),
            )
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gpu_gets_parts_of_so_many_tokens_that_it_is_busy():
    """At a vocabulary of 152,000 words the host takes 110 tokens at a time, a GPU 2,048; of a small
    vocabulary both take all that 64 MiB hold.
    """
    assert [tokens_at_once(152_064, device) for device in ("cpu", "cuda")] == [110, 2048]
    assert [tokens_at_once(4096, device) for device in ("cpu", "cuda")] == [4096, 4096]


@pytest.mark.parametrize(
    "scales", [{"logit_scale": 0.5}, {"final_logit_softcapping": 3.0, "logits_scaling": 2.0}]
)
def test_a_head_with_a_cap_or_a_scale_is_applied_in_parts_too(model, scales, monkeypatch):
    """The log-probabilities are those of scaled and capped logits, and no more than a part of them
    is there at a time.
    """
    answers = write(model)
    (batch,) = batches_of(answers, 3, pad_id=0, device="cpu")
    with torch.no_grad():
        logits = model.lm_head(answer_states(model, batch))
    logits = logits * scales.get("logit_scale", 1) / scales.get("logits_scaling", 1)
    if cap := scales.get("final_logit_softcapping"):
        logits = cap * torch.tanh(logits / cap)
    for name, value in scales.items():
        monkeypatch.setattr(model.config, name, value, raising=False)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda *given: seen.append(len(given[1][0])))
    monkeypatch.setattr(rollout, "tokens_at_once", lambda *_: 3)
    found, _ = answer_log_probs(model, batch, 1.0)
    hook.remove()
    assert max(seen) == 3
    wanted = logits.log_softmax(-1).gather(1, batch.targets_N[:, None])[:, 0]
    torch.testing.assert_close(found, wanted)


def test_log_probs_are_those_of_the_plain_model(model):
    """log softmax of the model's own logits at the place before each token, whatever the padding
    of its batch.
    """
    answers = write(model)
    batches = batches_of(answers, 2, pad_id=0, device="cpu")
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2]
    with torch.no_grad():
        table = scatter_answers(
            batches, [answer_log_probs(model, batch, 1.0)[0] for batch in batches]
        )
        for row, (prompt, ids) in enumerate(zip(answers.prompts, answers.ids, strict=True)):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            for place, token in enumerate(ids):
                assert table[row, place].item() == pytest.approx(
                    logits[len(prompt) - 1 + place, token].item(), abs=1e-5
                )


def test_a_model_s_own_generation_settings_take_no_part(toy_model, model):
    """top_k 1 and a repetition penalty in the model's settings would draw from another
    distribution: they are set aside, and stay as they were.
    """
    before = write(model)
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 1.5
    try:
        assert write(model).ids == before.ids
        assert model.generation_config.top_k == 1
    finally:
        model.generation_config.top_k, model.generation_config.repetition_penalty = 50, 1.0


def test_tables_and_batches_are_each_others_inverse():
    """What is laid out as a table and taken again is what it was."""
    answers = Answers([[1], [1, 3]], [[5, 6, 2], [7]], [True, False])
    (batch,) = batches_of(answers, 2, pad_id=0, device="cpu")
    assert batch.rows == [1, 0]
    assert batch.targets_N.tolist() == [7, 5, 6, 2]
    table = scatter_answers([batch], [torch.arange(1.0, 5.0)])
    assert table.tolist() == [[2.0, 3.0, 4.0], [1.0, 0.0, 0.0]]
    assert gather_answers(table, batch).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_tokenizer_of_the_toy_model_writes_what_it_reads(toy_model):
    """The toy's reward counts letters, so its tokens must be letters."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    assert tokenizer.decode(tokenizer("xxa b")["input_ids"]) == "xxa b"
