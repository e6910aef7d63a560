"""Whether a GGUF file is the model: llama.cpp reads the same tokens, writes the same answers, and
stops where they end.

At each place of an answer that transformers wrote greedily, llama-server computes its own most
likely token behind the same tokens. If all agree, its greedy answer is the same one: nothing else
decides it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.progress import track, waiting
from advisor.plan.vllm_client import ServerFault, VLLMClient
from trainers.job.evaluating import evaluating
from trainers.job.machine import usable_cores
from trainers.tools.gguf.model import Tokens, in_template

VARIABLE, PROGRAM = "ADVISE_LLAMA_CPP", "llama-server"
HOW = f"install llama.cpp ({PROGRAM} on PATH, or {VARIABLE}=FOLDER)"
LIMIT_S = 3600.0  # for one answer: a large model on few cores takes long, but not longer
ANSWER_TOKENS = 48  # compared of each answer
LONGEST_ANSWER = 256  # looked at for an end
PROMPT_TOKENS = 384  # of one prompt: what is longer is cut at its begin
ASKED = 6  # prompts
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
Post = Callable[[str, dict[str, Any]], Mapping[str, Any]]  # (path, value): the server's answer


@dataclass(frozen=True, kw_only=True)
class Answer:
    prompt: Sequence[int]
    tokens: Sequence[int]
    logits_TV: Any  # that it chose from


@dataclass(frozen=True, kw_only=True)
class Reference:
    readings: Sequence[tuple[str, bool, Sequence[int]]]  # text, with what is added to it?, tokens
    answers: Sequence[Answer]
    ends: Sequence[int]  # tokens that end an answer
    inside: Sequence[int] = ()  # marks of the tokenizer that do not, and are in answers


@dataclass(kw_only=True)
class Proof:
    """What was compared, and what differed."""

    kind: str  # of the file: F16, BF16, Q8_0, Q4_K_M
    needed: float  # share of places that must be the same
    texts: int  # whose tokens were compared
    prompts: int
    places: int = 0  # tokens of answers that were compared
    same: int = 0  # places with the same most likely token
    ends: int = 0  # answers that end in transformers
    ended: int = 0  # answers that llama.cpp ends at the same token
    ties: list[float] = field(default_factory=list)  # nats behind, where another was taken
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
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


def prove(program: Path, path: Path, of: Reference, kind: str) -> Proof:
    """Compare a file of this type with what transformers computed. What llama.cpp cannot do is a
    fault of the proof.
    """
    proof = Proof(
        kind=kind,
        needed=AGREEMENT.get(kind) or AGREEMENT.get(kind[:4], OTHERS),  # Q5_K_S as Q5_K_M
        texts=len({text for text, *_ in of.readings}),
        prompts=len(of.answers),
    )
    context = max(len(one.prompt) + len(one.tokens) for one in of.answers) + 8
    try:
        with serving(program, path, context) as post:
            compare(proof, of, post)
    except (OSError, ServerFault, ValueError, LookupError) as error:
        proof.faults.insert(0, f"llama.cpp: {error or type(error).__name__}")
    return proof


def compare(proof: Proof, of: Reference, post: Post) -> None:
    """Note what llama.cpp finds in a file beside what transformers computed."""
    for text, whole, ours in of.readings:
        asked = {"content": text, "add_special": whole, "parse_special": True}
        theirs = post("/tokenize", asked)["tokens"]
        if list(ours) != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            proof.faults.append(
                f"the text {text[:40]!r} has other tokens in llama.cpp, from token {at}:"
                f" {theirs[at : at + 4]} instead of {list(ours[at : at + 4])}"
            )
    plain = post("/tokenize", {"content": "a", "add_special": False})["tokens"][0]
    for token in [*of.ends, *of.inside]:
        stops = _next(post, of.answers[0].prompt, token)["stop_type"] == "eos"
        if token in of.ends and not stops:
            proof.faults.append(f"llama.cpp does not stop at token {token}, which ends an answer")
        elif stops and token not in of.ends:
            proof.faults.append(
                f"llama.cpp stops at token {token} inside an answer, where transformers goes on"
                " (if it ends answers, eos_token_id in generation_config.json has to list it)"
            )
    for answer in track(of.answers, "answering in llama.cpp", unit="prompts"):
        for place, token in enumerate(answer.tokens):
            found = _next(post, [*answer.prompt, *answer.tokens[:place]], plain)
            best = int(found["completion_probabilities"][0]["top_logprobs"][0]["id"])
            proof.places += 1
            proof.same += best == token
            if best != token:
                logits_V = answer.logits_TV[place]
                proof.ties.append(float(logits_V.max() - logits_V[best]))
        proof.ends += token in of.ends
        proof.ended += token in of.ends and best == token
    if proof.kind in EXACT and max(proof.ties, default=0.0) > NEAR_TIE:
        proof.faults.append(
            f"llama.cpp takes another token where transformers is sure: {max(proof.ties):.2g}"
            f" apart (a near tie is at most {NEAR_TIE:g})"
        )
    if proof.same < proof.needed * proof.places:
        proof.faults.append(
            f"only {proof.same / proof.places:.1%} of {proof.places} tokens are the same;"
            f" {proof.kind} needs {proof.needed:.0%}"
        )
    if proof.ends and not proof.ended:
        proof.faults.append("no answer ends in llama.cpp where it ends in transformers")


def _next(post: Post, tokens: Sequence[int], written: int) -> Mapping[str, Any]:
    """What llama.cpp says of the token behind these: its own choice, and whether it stops at the
    one that it has to write. That one is a whole character: newer versions refuse to answer with a
    part of one.
    """
    asked = {"prompt": list(tokens), "n_predict": 1, "n_probs": 1, "logit_bias": [[written, 1e4]]}
    return post("/completion", asked)


# --------------------------------------------------------------------------- transformers


def reference_of(
    model: Any, tokenizer: Any, tokens: Tokens, questions: Sequence[str] = ()
) -> Reference:
    """What a model answers to these questions, and to our own. Raises InputError.

    Args:
        tokens: What the file says of them.
    """
    asked = [in_template(tokenizer, one) for one in [*questions, *QUESTIONS][:ASKED]]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    answers = [
        _answer(model, prompt, tokens.ends, ANSWER_TOKENS)
        for prompt in track(prompts, "answering in transformers", unit="prompts")
    ]
    if not any(one.tokens[-1] in tokens.ends for one in answers):  # one that ends has to be seen
        with waiting("looking for an answer that ends, in transformers"):
            answers[0] = _answer(model, prompts[0], tokens.ends, LONGEST_ANSWER)
    readings = readings_of(tokenizer, asked, begins=tokens.begins)
    marks = {token for one in answers for token in one.tokens} & {*tokenizer.added_tokens_decoder}
    inside = sorted(marks - {*tokens.ends})
    return Reference(readings=readings, answers=answers, ends=tokens.ends, inside=inside)


def readings_of(
    tokenizer: Any, asked: Sequence[str], *, begins: bool
) -> list[tuple[str, bool, Sequence[int]]]:
    """(a text, with what llama.cpp adds to it?, its tokens): plain texts and prompts.

    Left out are accents that the tokenizer composes first, and llama.cpp does not: a note of the
    export says so.
    """
    composes = tokenizer.backend_tokenizer.normalizer is not None
    first = [tokenizer.bos_token_id] if begins else []
    prompts = dict.fromkeys([*asked, *(in_template(tokenizer, text) for text in TEXTS)])
    found: list[tuple[str, bool, Sequence[int]]] = []
    for text in dict.fromkeys([*TEXTS, *prompts]):
        if composes and not unicodedata.is_normalized("NFC", text):
            continue
        alone = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append((text, False, alone))
        if not tokenizer.chat_template:
            found.append((text, True, tokenizer(text)["input_ids"]))
        elif begins and text in prompts:  # a server leaves the first token to llama.cpp
            found.append((text.removeprefix(tokenizer.bos_token), True, alone))
        else:
            found.append((text, True, [*first, *alone]))
    return found


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
    tokens = out.sequences[0, len(prompt) :].tolist()
    return Answer(prompt=prompt, tokens=tokens, logits_TV=logits_TV)


# --------------------------------------------------------------------------- llama.cpp


def find_llama_server() -> Path | None:
    """The program that exports are proved with: in ADVISE_LLAMA_CPP (the program, or a folder of
    llama.cpp), else on PATH; None if there is none.

    Raises MachineNotReady if ADVISE_LLAMA_CPP names a place without one.
    """
    named = os.environ.get(VARIABLE)
    inside = [str(Path(named or "", part)) for part in ("", "bin", "build/bin")]
    places = os.pathsep.join(inside) if named else None  # None: those on PATH
    found = (shutil.which(named) if named else None) or shutil.which(PROGRAM, path=places)
    if named and found is None:
        raise MachineNotReady(
            f"{VARIABLE} is {named}: there is no {PROGRAM} there",
            allowed="the program, or a folder with it",
            hint=HOW,
        )
    return Path(found).resolve() if found else None


@contextmanager
def serving(program: Path, path: Path, context: int) -> Iterator[Post]:
    """llama-server with a file: what posts a request to it. Raises OSError with what it said.

    It gets half of the cores: its threads wait for each other by spinning, so that one more than
    there is room for makes every token ten times as slow.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(program), "-m", str(path), "--host", "127.0.0.1", "--port", str(port)),
        *("-c", str(context), "-np", "1", "-ngl", "0", "-t", str(max(1, usable_cores() // 2))),
    ]
    client = VLLMClient(f"http://127.0.0.1:{port}", LIMIT_S)

    def post(path: str, value: dict[str, Any]) -> Mapping[str, Any]:
        return client.post(path, value, dict)

    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with waiting("loading in llama.cpp"):
                until_s, is_ready = time.monotonic() + LIMIT_S, False
                while not is_ready:
                    if (code := server.poll()) is not None:
                        raise OSError(f"it crashed (exit {code})")
                    if time.monotonic() > until_s:
                        raise TimeoutError(f"it did not answer in {LIMIT_S:g} s")
                    time.sleep(0.1)
                    with suppress(ServerFault):  # it does not listen yet, or reads the file
                        is_ready = bool(post("/tokenize", {"content": ""}))
            yield post
        except (OSError, ServerFault) as error:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
            told = [line for line in said if "error" in line.lower() or "fail" in line.lower()]
            raise OSError(f"{error}; it said: {'; '.join((told or said)[-3:])}") from error
        finally:
            server.kill()
            server.wait()
