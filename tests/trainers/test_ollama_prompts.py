"""Tokens of Ollama's prompts in llama.cpp, compared with those of the training."""

from __future__ import annotations

import pytest

from advisor.ground.errors import TrainingFailed
from tests.trainers.families import family_tokenizer
from trainers.tools.ollama_prompts import check

MESSAGES = [{"role": "user", "content": "Hello"}]


class Engine:
    """Reads a text as transformers does, with a token in front if the file says so."""

    def __init__(self, tokenizer, first=()):
        self.tokenizer, self.first = tokenizer, list(first)

    def tokens(self, texts, *, whole):
        assert whole
        return [
            self.first + self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in texts
        ]


def test_the_same_tokens_pass_and_others_are_named():
    """A token too many in front is found, and so is a text that misses something."""
    tokenizer = family_tokenizer("qwen3")
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    check(Engine(tokenizer), tokenizer, [{"messages": MESSAGES, "text": text}])
    for engine, written in (
        (Engine(tokenizer, [0]), text),
        (Engine(tokenizer), text.rstrip()[:-1]),
    ):
        with pytest.raises(TrainingFailed, match="reads other tokens"):
            check(engine, tokenizer, [{"messages": MESSAGES, "text": written}])
