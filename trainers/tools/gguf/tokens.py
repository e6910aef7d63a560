"""The tokenizer of a model as GGUF has it: the list of tokens with their kinds, merges or scores,
how texts are cut, special tokens, the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.gguf import pre_tokenizers
from trainers.frame.files import read_json
from trainers.frame.model_files import reading
from trainers.prepare.template_arguments import with_fixed_arguments

SPACE = "▁"  # a space, in tokenizers that merge pieces of text
NEVER = -1e9  # the score of a token that no merge makes
WAY_OUT = (
    "`advise export RUN --to merged` writes a plain model that vLLM and transformers serve with its"
    " own tokenizer"
)


class Kind(IntEnum):
    """Kinds of tokens in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(kw_only=True)
class Tokens:
    """A tokenizer for GGUF. Keys of `values` stand behind `tokenizer.`."""

    tokens: list[str]
    kinds: list[int]
    values: dict[str, Any]
    scores: list[float] | None = None
    merges: list[str] | None = None
    ends: list[int] = field(default_factory=list)  # tokens that end an answer
    notes: list[str] = field(default_factory=list)  # what GGUF cannot hold, in sentences


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer that transformers loads. Raises InputError."""
    from transformers import AutoTokenizer

    with reading(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def read_tokens(folder: Path, vocab_size: int) -> Tokens:
    """The tokenizer of a model folder.

    Raises InputError where llama.cpp has no such tokenizer.

    Args:
        vocab_size: Rows of the embeddings. Those without a token get a name of their own.
    """
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(folder, "it has no tokenizer.json that transformers can use")
    state = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise _refused(folder, f"it is of the kind {model['type']}, not BPE")
    found = _names(state, tokenizer, vocab_size)
    if len(found.tokens) > vocab_size:
        raise _refused(
            folder, f"it has {len(found.tokens)} tokens, and the model {vocab_size} embeddings"
        )
    steps = _steps(state["pre_tokenizer"])
    if any(step["type"] == "ByteLevel" for step in steps):
        _byte_level(found, state, steps, folder)
    elif model.get("byte_fallback"):
        _pieces(found, state, folder, chats=bool(tokenizer.chat_template))
    else:
        raise _refused(folder, "it merges neither bytes nor pieces with bytes for the rest")
    _special(found, tokenizer, folder)
    return found


def _refused(folder: Path, why: str) -> InputError:
    return InputError(
        f"llama.cpp does not know this tokenizer: {why}", where=str(folder), hint=WAY_OUT
    )


def _names(state: Mapping[str, Any], tokenizer: Any, vocab_size: int) -> Tokens:
    """Every token by its number, and its kind."""
    names = {number: text for text, number in state["model"]["vocab"].items()}
    added = {token["id"]: token for token in state["added_tokens"]}
    names |= {number: token["content"] for number, token in added.items()}
    count = max(vocab_size, max(names) + 1)
    kinds: list[int] = []
    for number in range(count):
        text = names.setdefault(number, f"[PAD{number}]")
        kind = Kind.NORMAL
        if number in added:
            kind = Kind.CONTROL if added[number]["special"] else Kind.USER_DEFINED
        elif text == f"[PAD{number}]":
            kind = Kind.UNUSED
        elif state["model"].get("byte_fallback") and _is_byte(text):
            kind = Kind.BYTE
        kinds.append(kind)
    unknown = tokenizer.unk_token_id
    if unknown is not None and state["model"].get("byte_fallback"):
        kinds[unknown] = Kind.UNKNOWN
    return Tokens(tokens=[names[number] for number in range(count)], kinds=kinds, values={})


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """How a text is cut, step by step, as rules/serving/gguf.yaml writes it."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    step = dict(pre_tokenizer)
    if step["type"] == "ByteLevel":
        step.pop("trim_offsets", None)
        if not step.get("add_prefix_space"):
            step.pop("add_prefix_space", None)
        step.setdefault("use_regex", True)
    elif step["type"] == "Split" and "Regex" in step["pattern"]:
        step["pattern"] = step["pattern"]["Regex"]
        if (step.pop("behavior"), step.pop("invert")) != ("Isolated", False):
            step["type"] = "another Split"
    return [step]


def _byte_level(
    found: Tokens, state: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    model = state["model"]
    ignores = bool(model.get("ignore_merges"))
    name = next(
        (
            known.name
            for known in pre_tokenizers()
            if list(known.steps) == list(steps) and known.ignore_merges == ignores
        ),
        None,
    )
    if name is None:
        raise InputError(
            "llama.cpp's name for the way this tokenizer cuts texts is not known",
            where=str(folder),
            allowed=f"known: {', '.join(known.name for known in pre_tokenizers())}",
            hint=f"it cuts by {json.dumps(list(steps), ensure_ascii=False)[:300]}; {WAY_OUT}",
        )
    if state["normalizer"] is not None:
        kind = state["normalizer"]["type"]
        if kind != "NFC":
            raise _refused(folder, f"it changes texts first ({kind})")
        found.notes.append(
            "the tokenizer composes accents first (NFC), and llama.cpp does not: send composed text"
        )
    found.values |= {"ggml.model": "gpt2", "ggml.pre": name}
    found.merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]
    ]


def _pieces(found: Tokens, state: Mapping[str, Any], folder: Path, *, chats: bool) -> None:
    """A tokenizer like that of Llama 2 and Gemma. llama.cpp merges the pair of highest score: the
    earlier a merge stands in the list, the higher the score of what it makes.
    """
    scores = [NEVER if kind == Kind.NORMAL else 0.0 for kind in found.kinds]
    numbers = {text: number for number, text in enumerate(found.tokens)}
    for rank, merge in enumerate(state["model"]["merges"]):
        made = numbers.get("".join(merge.split(" ") if isinstance(merge, str) else merge))
        if made is not None and scores[made] == NEVER:
            scores[made] = -float(rank)
    found.scores = scores
    found.values |= {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.add_space_prefix": _adds_space(state, folder, chats=chats),
    }
    if begins_with_space(state) and chats:
        found.notes.append(
            "the tokenizer puts a space before a text that begins with no special token, and"
            " llama.cpp does not: prompts through the chat template are read alike"
        )


def begins_with_space(state: Mapping[str, Any]) -> bool:
    """Whether a space is put before a whole text only, and not behind special tokens in it, where
    llama.cpp would put one too.
    """
    return any(step.get("prepend_scheme") == "first" for step in _steps(state["pre_tokenizer"]))


def _adds_space(state: Mapping[str, Any], folder: Path, *, chats: bool) -> bool:
    """Whether llama.cpp shall put a space before each text, and behind each special token.

    Raises InputError for other changes of texts.
    """
    adds = False
    for part in [*_parts(state["normalizer"], "normalizers"), *_steps(state["pre_tokenizer"])]:
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            adds = True
        elif part["type"] == "Metaspace":
            scheme = part["prepend_scheme"]
            adds = scheme == "always" or (scheme == "first" and not chats)
        elif part["type"] not in ("Replace", "Split"):
            raise _refused(folder, f"it changes texts first ({part['type']})")
    return adds


def _parts(value: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    return list(value[inside]) if value["type"] == "Sequence" else [value]


def _special(found: Tokens, tokenizer: Any, folder: Path) -> None:
    """Special tokens, what is added to a text, and the chat template."""
    ends = end_tokens(tokenizer, folder)
    found.ends = ends
    numbers = {
        "ggml.bos_token_id": tokenizer.bos_token_id,
        "ggml.unknown_token_id": tokenizer.unk_token_id,
        "ggml.padding_token_id": tokenizer.pad_token_id,
        # llama.cpp ends an answer at each of these three.
        **dict(
            zip(("ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id"), ends, strict=False)
        ),
    }
    found.values |= {name: number for name, number in numbers.items() if number is not None}
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x")["input_ids"]
    before = tokenizer.bos_token_id is not None and whole[:1] == [tokenizer.bos_token_id]
    after = len(whole) > len(plain) and whole[-1] in ends
    found.values |= {"ggml.add_bos_token": before, "ggml.add_eos_token": after}
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        found.values["chat_template"] = with_fixed_arguments(template)
    else:
        found.notes.append(
            "the model has no chat template: programs that chat with it will guess one"
        )


def end_tokens(tokenizer: Any, folder: Path) -> list[int]:
    """The tokens that end an answer: that of the tokenizer first, then those that
    generation_config.json adds.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    path = folder / "generation_config.json"
    if path.is_file():
        named = read_json(path).get("eos_token_id")
        for number in named if isinstance(named, list) else [named]:
            if number is not None and number not in found:
                found.append(int(number))
    return found
