"""What transformers computes for some prompts: the tokens of texts, greedy answers, and how sure
the model was at each of their tokens. Exports are compared with it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.progress import followed, waiting
from trainers.frame.evaluating import evaluating
from trainers.frame.model_files import reading
from trainers.tools.gguf.tokens import begins_with_space, load_tokenizer

ANSWER_TOKENS = 48  # compared of each answer
LONGEST_ANSWER = 256  # looked at for an end
PROMPT_TOKENS = 384  # of one prompt: what is longer is cut at its begin
WATCHED = 16  # most likely tokens whose probability is compared, at each place
# Texts in which tokenizers differ: spaces, line breaks, digits, scripts, marks, emoji, code.
TEXTS = (
    "Hello world",
    " leading and trailing ",
    "two  spaces   three    four",
    "a\nb\n\nc\n\n\nd\r\ne",
    "\ttab\t\ttabs\n    indented()",
    "0 1 12 123 1234 12345 3.14159 1,000,000",
    "It's we'll they've I'D CAN'T",
    "naïve café Ärger Straße İstanbul",
    "Zürich – „Anführung“ … “quotes” ‘single’",
    "Привет, мир! Καλημέρα κόσμε",
    "你好，世界。今天天气很好！ こんにちは 안녕하세요",
    "مرحبا بالعالم שלום עולם नमस्ते",
    "🙂🚀👩‍👩‍👧‍👦 🇩🇪 1️⃣",
    "e\u0301 a\u0308 n\u0303 (marks of their own)",
    "zero\u200bwidth no\u00a0break thin\u2009space \ufeff",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # done!",
    "<b>tag</b> {{ mustache }} [INST] $VAR C:\\path\\file #1 @you",
    "https://example.org/a?b=c&d=%20e mail@example.org",
    "!!!??? ---- ==== ____ ....",
    "UPPER lower MiXeD camelCase snake_case kebab-case",
    "x" * 40 + " " * 20 + "\n" * 5,
    "",
)
QUESTIONS = (
    "Hello! Who are you?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 12 + 30?",
    "How do I boil an egg?",
    "Say thank you in Spanish.",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What transformers wrote, greedily, and its log-probabilities."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    stopped: bool  # the last token is one that ends an answer
    watched: tuple[tuple[int, ...], ...]  # the most likely tokens at each place, best first
    log_probs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What an export has to agree with."""

    texts: tuple[str, ...]  # plain ones, and prompts as the chat template writes them
    parts: tuple[tuple[int, ...], ...]  # their tokens alone
    wholes: tuple[tuple[int, ...], ...]  # with what the tokenizer adds to a whole text
    left_out: int  # texts that llama.cpp is known to read otherwise
    answers: tuple[Answer, ...]
    ends: tuple[int, ...]
    dtype: str  # that transformers computed in


def reference_of(
    folder: Path,
    ends: Sequence[int],
    questions: Sequence[str],
    *,
    tokens: Path | None = None,
    adapter: Path | None = None,
) -> Reference:
    """Load the model of a folder and let it answer. Raises InputError.

    Args:
        ends: Tokens that end an answer.
        questions: What a user asks; the chat template is put around it.
        tokens: The folder with the tokenizer, if it is another one.
        adapter: A LoRA adapter on the model.
    """
    tokenizer = load_tokenizer(tokens or folder)
    rendered = [rendered_prompt(tokenizer, question) for question in questions]
    chats = [rendered_prompt(tokenizer, text) for text in TEXTS]
    texts, left_out = comparable(TEXTS, [*rendered, *chats], tokenizer)
    with waiting("loading the model in transformers"):
        model = _model(folder, adapter)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    answers = [
        _answer(model, prompt, ends, ANSWER_TOKENS)
        for prompt in followed(prompts, "answering in transformers", unit="prompts")
    ]
    if not any(answer.stopped for answer in answers):  # one that ends has to be seen
        with waiting("looking for an answer that ends, in transformers"):
            answers[0] = _answer(model, prompts[0], ends, LONGEST_ANSWER)
    return Reference(
        texts=tuple(texts),
        parts=tuple(
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        ),
        wholes=tuple(tuple(tokenizer(text)["input_ids"]) for text in texts),
        left_out=left_out,
        answers=tuple(answers),
        ends=tuple(ends),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def rendered_prompt(tokenizer: Any, question: str) -> str:
    """A question as the chat template writes it; without a template, as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return question
    with reading(tokenizer.name_or_path, "the chat template"):
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )


def comparable(
    plain: Sequence[str], rendered: Sequence[str], tokenizer: Any
) -> tuple[list[str], int]:
    """The texts that both have to read alike, and how many others there are: llama.cpp does not
    compose accents first, nor tell the begin of a text from the place behind a special token. The
    notes of an export name both.

    Args:
        rendered: As the chat template writes them.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    chats = bool(getattr(tokenizer, "chat_template", None))
    kept = [*([] if chats and begins_with_space(state) else plain), *rendered]
    if state["normalizer"] is not None and state["normalizer"]["type"] == "NFC":
        kept = [text for text in kept if unicodedata.is_normalized("NFC", text)]
    kept = list(dict.fromkeys(kept))
    return kept, len({*plain, *rendered}) - len(kept)


def _model(folder: Path, adapter: Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # In float32 every rounding that shows is llama.cpp's, if there is room for that.
    memory = free_memory()
    exact = memory is None or 3 * size < memory
    with reading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32 if exact else "auto", trust_remote_code=False
        )
    if adapter is not None:
        from peft import PeftModel

        with reading(adapter, "the adapter"):
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def free_memory() -> int | None:
    """Bytes of memory that can be used; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _answer(model: Any, prompt: Sequence[int], ends: Sequence[int], limit: int) -> Answer:
    """The greedy answer of at most so many tokens."""
    import torch
    from transformers import GenerationConfig

    room = getattr(model.config, "max_position_embeddings", None) or PROMPT_TOKENS + limit
    limit = min(limit, max(8, room // 2))
    prompt = list(prompt)[-min(PROMPT_TOKENS, room - limit) :]
    ids = torch.tensor([prompt], device=model.device)
    # The model's own settings may penalise repetition; llama.cpp's greedy answer does not.
    model.generation_config = GenerationConfig()
    with evaluating(model):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=list(ends) or None,
                pad_token_id=ends[0] if ends else 0,
                output_logits=True,
                return_dict_in_generate=True,
            ),
        )
    log_probs_TV = torch.log_softmax(torch.cat(out.logits).double(), dim=-1)
    if bool(log_probs_TV.isnan().any()):  # its first token would be "the most likely" everywhere
        raise InputError(
            "the model computes numbers that are none (NaN)",
            where=str(getattr(model, "name_or_path", "the model")),
            hint="its weights hold NaN or infinity: train it again, with a lower rate",
        )
    top = log_probs_TV.topk(min(WATCHED, log_probs_TV.shape[-1]), dim=-1)
    tokens = out.sequences[0, len(prompt) :].tolist()
    return Answer(
        prompt=tuple(prompt),
        tokens=tuple(tokens),
        stopped=tokens[-1] in ends,
        watched=tuple(map(tuple, top.indices.tolist())),
        log_probs=tuple(map(tuple, top.values.tolist())),
    )
