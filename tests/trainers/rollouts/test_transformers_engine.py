"""The engine `transformers`: what it generates, and what it leaves as it was."""

from contextlib import nullcontext

import pytest

pytest.importorskip("torch")

from transformers import AutoModelForCausalLM

from trainers.rollouts import Sampling
from trainers.rollouts import transformers_engine as module

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]


def test_parts_hold_prompts_of_similar_length(tiny_model, monkeypatch):
    """Answers in parts: the longest prompts first, each answer back in its place, greedy ones the
    same as all at once.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    engine = module.TransformersEngine(lambda: nullcontext(model), models=lambda: [model])
    greedy = Sampling(limit=6, stops=[2], temperature=0)
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
