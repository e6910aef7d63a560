"""Whether a GGUF file is the model: llama.cpp reads the same tokens, writes the same answers, and
stops where they end.

At each place of an answer that transformers wrote greedily, llama.cpp computes its own most likely
token behind the same tokens. If all agree, its greedy answer is the same one: nothing else
decides it.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.progress import track, waiting
from trainers.job.evaluating import evaluating
from trainers.job.machine import free_host_bytes
from trainers.start.model_files import reading
from trainers.tools.gguf.llama_cpp import EngineFailed
from trainers.tools.gguf.model import Written
from trainers.tools.gguf.tokens import in_template, load_tokenizer

ANSWER_TOKENS = 48  # compared of each answer
LONGEST_ANSWER = 256  # looked at for an end
PROMPT_TOKENS = 384  # of one prompt: what is longer is cut at its begin
ASKED = 6  # prompts
WATCHED = 16  # most likely tokens that may be near ties, at each place
# Texts in which tokenizers differ: spaces, line breaks, digits, scripts, marks, emoji, code.
TEXTS = (
    "", "Hello world", " leading, two  and   three    spaces ", "!!!??? ---- ==== ____ ....",
    "a\nb\n\nc\n\n\nd\r\ne\ttab\t\ttabs\n    indented()", "x" * 40 + " " * 20 + "\n" * 5,
    "0 1 12 123 1234 12345 3.14159 1,000,000", "It's we'll they've I'D CAN'T",
    "naïve café Ärger Straße İstanbul – „Anführung“ … “quotes” ‘single’", "Привет, мир! Καλημέρα",
    "你好，世界。今天天气很好！ こんにちは 안녕하세요", "مرحبا بالعالم שלום עולם नमस्ते",
    "🙂🚀👩‍👩‍👧‍👦 🇩🇪 1️⃣", "e\u0301 a\u0308 n\u0303 (marks of their own)",
    "zero\u200bwidth no\u00a0break thin\u2009space \ufeff", "UPPER lower camelCase snake_case",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # done!",
    "<b>tag</b> {{ mustache }} [INST] $VAR C:\\path\\file #1 @you",
    "https://example.org/a?b=c&d=%20e mail@example.org",
)  # fmt: skip
QUESTIONS = (
    "Hello! Who are you?", "What is the capital of France?", "Write one sentence about the sea.",
    "What is 12 + 30?", "How do I boil an egg?", "Say thank you in Spanish.",
)  # fmt: skip
EXACT = ("F16", "BF16")  # types whose other choices must be near ties
NEAR_TIE = 0.05  # in nats: so far apart two tokens may be where a 16-bit file takes the other one
# The share of tokens of greedy answers that must be the same. Measured on SmolLM2-135M: BF16 97 %
# (four near ties of 157), Q8_0 94 %, Q4_K_M 91 %; larger models agree more. Files with a mistake
# agreed at under half of the places.
AGREEMENT = {"F16": 0.95, "BF16": 0.95, "Q8_0": 0.85, "Q6_K": 0.85, "Q5_K": 0.8, "Q4_K": 0.7}
OTHERS = 0.6

Engine = Callable[[dict[str, Any]], Mapping[str, Any]]  # libllama.answer, in its process


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What transformers wrote, greedily."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    stopped: bool  # the last token is one that ends an answer
    # At each place: by how many nats the likeliest tokens are less likely than the first.
    behind: Sequence[Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a file has to agree with."""

    readings: Sequence[tuple[str, bool, Sequence[int]]]  # text, with what is added to it?, tokens
    answers: Sequence[Answer]
    ends: Sequence[int]  # tokens that end an answer


@dataclass(kw_only=True)
class Proof:
    """What was compared, and what differed."""

    kind: str  # of the file: F16, BF16, Q8_0, Q4_K_M
    needed: float  # share of places that must be the same
    texts: int  # whose tokens were compared
    prompts: int
    ends: int  # answers that end in transformers
    places: int = 0  # tokens of answers that were compared
    same: int = 0  # places with the same most likely token
    ended: int = 0  # answers that llama.cpp ends at the same token
    ties: list[float] = field(default_factory=list)  # differences where another was taken
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was found, in sentences."""
        if self.faults:
            return [f"not the model: {fault}" for fault in self.faults[:3]]
        ties = ""
        if self.ties and self.kind in EXACT:
            ties = f" (the others are near ties: at most {max(self.ties):.2g} apart)"
        return [
            "proved with llama.cpp, against transformers:",
            f"  {self.texts} texts have the same tokens",
            f"  {self.same} of {self.places} tokens of {self.prompts} greedy answers are the"
            f" same{ties}; needed: {self.needed:.0%}",
            f"  {self.ended} of {self.ends} answers that end do so at the same token",
        ]


def prove(engine: Engine, path: Path, of: Reference, *, kind: str) -> Proof:
    """Compare a file of this type with what transformers computed. What llama.cpp cannot do is a
    fault of the proof.
    """
    proof = Proof(
        kind=kind,
        needed=AGREEMENT.get(kind) or AGREEMENT.get(kind[:4], OTHERS),  # Q5_K_S as Q5_K_M
        texts=len({text for text, *_ in of.readings}),
        prompts=len(of.answers),
        ends=sum(answer.stopped for answer in of.answers),
    )
    longest = max(len(one.prompt) + len(one.tokens) for one in of.answers)
    request = {
        "model": str(path),
        "context": 64 * math.ceil((longest + 8) / 64),
        "texts": [(text, is_whole) for text, is_whole, _ in of.readings],
        "ends": sorted({*of.ends, *(token for one in of.answers for token in one.tokens)}),
        "answers": [(one.prompt, one.tokens) for one in of.answers],
    }
    try:
        with waiting(f"answering in llama.cpp ({kind})"):
            found = engine(request)
    except EngineFailed as error:
        proof.faults.append(str(error))
        return proof
    for (text, _, ours), theirs in zip(of.readings, found["tokens"], strict=True):
        if list(ours) != list(theirs):
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            proof.faults.append(
                f"the text {text[:40]!r} has other tokens in llama.cpp, from token {at}:"
                f" {list(theirs[at : at + 4])} instead of {list(ours[at : at + 4])}"
            )
    for token in set(of.ends) - set(found["ends"]):
        proof.faults.append(f"llama.cpp does not stop at token {token}, which ends an answer")
    for answer, choices in zip(of.answers, found["choices"], strict=True):
        _compare_answer(proof, answer, choices, set(found["ends"]))
    if proof.kind in EXACT and max(proof.ties, default=0.0) > NEAR_TIE:
        proof.faults.append(
            f"llama.cpp takes another token where transformers is sure: {max(proof.ties):.2g}"
            f" apart (a near tie is at most {NEAR_TIE:g})"
        )
    if proof.same < proof.needed * proof.places:
        proof.faults.append(
            f"only {proof.same / proof.places:.1%} of {proof.places} tokens are the same;"
            f" {kind} needs {proof.needed:.0%}"
        )
    if proof.ends and not proof.ended:
        proof.faults.append("no answer ends in llama.cpp where it ends in transformers")
    return proof


def _compare_answer(proof: Proof, answer: Answer, choices: Sequence[int], ends: set[int]) -> None:
    inside = answer.tokens[:-1] if answer.stopped else answer.tokens
    if stops := [token for token in inside if token in ends]:
        proof.faults.append(
            f"llama.cpp stops at token {stops[0]} inside an answer, where transformers goes on"
            " (if it ends answers, eos_token_id in generation_config.json has to list it)"
        )
    for token, best, behind in zip(answer.tokens, choices, answer.behind, strict=True):
        proof.places += 1
        proof.same += best == token
        if best != token:
            proof.ties.append(behind.get(best, max(behind.values())))
    proof.ended += answer.stopped and choices[-1] == answer.tokens[-1]


# --------------------------------------------------------------------------- transformers


def reference_of(
    folder: Path, written: Written, questions: Sequence[str], *, tokens_of: Path | None = None
) -> Reference:
    """Load the model of a folder and let it answer these questions, and our own. Raises InputError.

    Args:
        written: What the file says of its tokens.
        tokens_of: The folder with the tokenizer, if it is another one.
    """
    tokenizer = load_tokenizer(tokens_of or folder)
    asked = [in_template(tokenizer, one) for one in [*questions, *QUESTIONS][:ASKED]]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    with waiting("loading the model in transformers"):
        model = _model(folder)
    answers = [
        _answer(model, prompt, written.ends, ANSWER_TOKENS)
        for prompt in track(prompts, "answering in transformers", unit="prompts")
    ]
    if not any(answer.stopped for answer in answers):  # one that ends has to be seen
        with waiting("looking for an answer that ends, in transformers"):
            answers[0] = _answer(model, prompts[0], written.ends, LONGEST_ANSWER)
    readings = readings_of(tokenizer, asked, begins=written.begins)
    return Reference(readings=readings, answers=answers, ends=written.ends)


def readings_of(
    tokenizer: Any, asked: Sequence[str], *, begins: bool
) -> list[tuple[str, bool, Sequence[int]]]:
    """(a text, with what llama.cpp adds to it?, its tokens): plain texts and prompts.

    Left out are accents that the tokenizer composes first, and llama.cpp does not: a note of the
    export says so.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    chats = bool(tokenizer.chat_template)
    prompts = dict.fromkeys([*asked, *(in_template(tokenizer, text) for text in TEXTS)])
    found = []
    for text in dict.fromkeys([*TEXTS, *prompts]):
        if state["normalizer"] is not None and not unicodedata.is_normalized("NFC", text):
            continue
        alone = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append((text, False, alone))
        if not chats:
            found.append((text, True, tokenizer(text)["input_ids"]))
        elif begins and text in prompts:  # a server leaves the first token to llama.cpp
            found.append((text.removeprefix(tokenizer.bos_token), True, alone))
        else:
            found.append((text, True, [*([tokenizer.bos_token_id] if begins else []), *alone]))
    return found


def _model(folder: Path) -> Any:
    """In float32 every rounding that shows is llama.cpp's, if there is room for that."""
    import torch
    from transformers import AutoModelForCausalLM

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    exact = 3 * size < free_host_bytes()
    with reading(folder):
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32 if exact else "auto", trust_remote_code=False
        ).eval()


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
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with evaluating(model):
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
        )
    logits_TV = torch.cat(out.logits).double()
    if bool(logits_TV.isnan().any()):  # its first token would be "the most likely" everywhere
        raise InputError(
            "the model computes numbers that are none (NaN)",
            where=str(getattr(model, "name_or_path", "the model")),
            hint="its weights hold NaN or infinity: train it again, with a lower rate",
        )
    top = logits_TV.topk(min(WATCHED, logits_TV.shape[-1]), dim=-1)
    behind = zip(top.indices.tolist(), (top.values[:, :1] - top.values).tolist(), strict=True)
    tokens = out.sequences[0, len(prompt) :].tolist()
    return Answer(
        prompt=prompt,
        tokens=tokens,
        stopped=tokens[-1] in ends,
        behind=[dict(zip(*place, strict=True)) for place in behind],
    )
