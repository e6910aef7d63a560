"""The tokenizer of a model as GGUF has it: the list of tokens with their kinds, merges or scores,
how texts are cut, special tokens, the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from trainers.job.files import read_json
from trainers.rows.template_arguments import with_fixed_arguments
from trainers.start.model_files import reading

WAY_OUT = (
    "`advise export RUN --to merged` writes a plain model, of which llama.cpp's own"
    " convert_hf_to_gguf.py makes a GGUF file (nothing is proved then)"
)
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES, WORDS = ("ByteLevel", False), ("ByteLevel", True)  # the second by the words of GPT-2
# (the steps by which a tokenizer over bytes cuts a text, whether it leaves words of the vocabulary
# unmerged) -> GGUF's name for that. Others are refused: a wrong name changes the tokens of some
# texts, and nobody notices.
CUTS = {
    ((WORDS,), False): "gpt-2",
    ((("Digits", True), WORDS), False): "smollm",
    ((("Split", _TIKTOKEN % ""), BYTES), False): "qwen2",
    ((("Split", _TIKTOKEN % "{1,3}"), BYTES), True): "llama-bpe",
    ((("Split", _TIKTOKEN % "{1,3}"), BYTES), False): "smaug-bpe",
}


@dataclass(kw_only=True)
class Tokens:
    """A tokenizer for GGUF."""

    values: dict[str, Any]  # GGUF key -> value
    begins: bool = False  # llama.cpp puts the first token in front of a text
    ends: list[int] = field(default_factory=list)  # tokens that end an answer
    notes: list[str] = field(default_factory=list)  # what GGUF cannot hold, in sentences


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer that transformers loads. Raises InputError."""
    from transformers import AutoTokenizer

    with reading(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def in_template(tokenizer: Any, question: str) -> str:
    """A question as the chat template writes it; without a template, as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return question
    asked = [{"role": "user", "content": question}]
    with reading(tokenizer.name_or_path, "the chat template"):
        return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))


def read_tokens(folder: Path, vocab_size: int) -> Tokens:
    """The tokenizer of a model folder. Raises InputError where llama.cpp has no such tokenizer.

    Args:
        vocab_size: Rows of the embeddings. Those without a token get a name of their own.
    """
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(folder, "it has no tokenizer.json that transformers can use")
    state = json.loads(backend.to_str())
    if (kind := state["model"]["type"]) != "BPE" or state["model"].get("byte_fallback"):
        raise _refused(folder, f"it is of the kind {kind} and does not merge bytes")
    names, kinds = _names(state, vocab_size)
    if len(names) > vocab_size:
        why = f"it has {len(names)} tokens, and the model {vocab_size} embeddings"
        raise _refused(folder, why)
    found = Tokens(values={"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": kinds})
    _merges(found, state, folder)
    _special(found, tokenizer, folder)
    return found


def _refused(folder: Path, why: str) -> InputError:
    what = f"llama.cpp does not know this tokenizer: {why}"
    return InputError(what, where=str(folder), hint=WAY_OUT)


def _names(state: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token by its number, and its kind."""
    from gguf import TokenType

    added = {token["id"]: token for token in state["added_tokens"]}
    names = {number: text for text, number in state["model"]["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    kinds = []
    for number in range(max(vocab_size, max(names) + 1)):
        kind = TokenType.NORMAL if number in names else TokenType.UNUSED
        names.setdefault(number, f"[PAD{number}]")
        if number in added:
            special = added[number]["special"]
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        kinds.append(int(kind))
    return [names[number] for number in range(len(kinds))], kinds


def _cut(step: Mapping[str, Any]) -> tuple[str, Any]:
    """One step of a pre-tokenizer, as CUTS writes it."""
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and (step["behavior"], step["invert"]) == ("Isolated", False):
        return kind, step["pattern"].get("Regex")
    return "another", json.dumps(step, ensure_ascii=False)


def _merges(found: Tokens, state: Mapping[str, Any], folder: Path) -> None:
    first = state["pre_tokenizer"] or {"type": "none"}
    cuts = tuple(_cut(step) for step in first.get("pretokenizers", [first]))
    name = CUTS.get((cuts, bool(state["model"].get("ignore_merges"))))
    if name is None:
        raise InputError(
            "llama.cpp's name for the way this tokenizer cuts texts is not known",
            where=str(folder),
            allowed=f"known: {', '.join(CUTS.values())}",
            hint=f"it cuts by {json.dumps(cuts, ensure_ascii=False)[:300]}; {WAY_OUT}",
        )
    if state["normalizer"] is not None:
        if (kind := state["normalizer"]["type"]) != "NFC":
            raise _refused(folder, f"it changes texts first ({kind})")
        found.notes.append(
            "the tokenizer composes accents first (NFC), and llama.cpp does not: send composed text"
        )
    merges = state["model"]["merges"]
    found.values |= {
        "tokenizer.ggml.merges": [one if isinstance(one, str) else " ".join(one) for one in merges],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
    }


def _special(found: Tokens, tokenizer: Any, folder: Path) -> None:
    """Special tokens, what is added to a text, and the chat template. An answer ends at the token
    of the tokenizer and those that generation_config.json adds.
    """
    path = folder / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = dict.fromkeys([tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])])
    found.ends = [int(number) for number in ends if number is not None]
    numbers = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        # llama.cpp ends an answer at each of these three.
        **dict(zip(("eos", "eot", "eom"), found.ends, strict=False)),
    }
    for name, number in numbers.items():
        if number is not None:
            found.values[f"tokenizer.ggml.{name}_token_id"] = number
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    whole, text = tokenizer("x")["input_ids"], in_template(tokenizer, "x")
    found.begins = whole[0] == tokenizer.bos_token_id
    if template:  # the training had what it writes, and nothing else
        found.begins = found.begins and text.startswith(tokenizer.bos_token)
    adds_end = not template and len(whole) > 1 and whole[-1] in found.ends
    found.values["tokenizer.ggml.add_bos_token"] = found.begins
    found.values["tokenizer.ggml.add_eos_token"] = adds_end
    if template:
        found.values["tokenizer.chat_template"] = with_fixed_arguments(template)
    else:
        found.notes.append(
            "the model has no chat template: programs that chat with it will guess one"
        )
