"""A model in memory as one GGUF file (16 bit, or 8 bit in blocks): sizes and rotation as the
configuration has them, tensors by the names and in the order of rows that llama.cpp has, and the
tokenizer as a list of tokens with their kinds, merges and the way texts are cut. What llama.cpp
would compute otherwise is refused, with every reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from gguf import TokenType

from advisor.ground.errors import Fault, InputError
from advisor.ground.progress import waiting
from trainers.job.files import read_json
from trainers.rows.template_arguments import with_fixed_arguments
from trainers.start.model_files import reading

WAY_OUT = (
    "`advise export --to merged` writes a plain model, of which llama.cpp's own"
    " convert_hf_to_gguf.py makes a GGUF file (nothing is proved then)"
)
# `model_type`, which is GGUF's name too -> key of config.json -> what llama.cpp computes with.
# A family needs a case of tests/trainers/test_gguf_files.py and a comparison of its vocabulary.
SILU: dict[str, Sequence[Any]] = {"hidden_act": ("silu", "swish")}
FAMILIES = {
    "llama": SILU,
    "qwen2": {**SILU, "use_sliding_window": (False,)},
    "qwen3": {**SILU, "use_sliding_window": (False,), "attention_bias": (False,)},
}
NEIGHBOURS = ("llama",)  # rows 2i and 2i + 1 of a head are rotated together, not i and i + half
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
F16_LARGEST = 65504.0
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


def check_family(config: Any, where: str) -> None:
    """Raise InputError with everything of a configuration that llama.cpp computes otherwise."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"a GGUF file of a '{config.model_type}' model is not supported",
            where=where,
            allowed=f"supported: {', '.join(FAMILIES)}",
            hint=WAY_OUT,
        )
    wrong = [
        f"{key} is {getattr(config, key)!r}; llama.cpp computes with {allowed[0]!r}"
        for key, allowed in FAMILIES[config.model_type].items()
        if getattr(config, key, None) not in (*allowed, None)
    ]
    rope = config.rope_parameters
    if rope["rope_type"] not in ROPE_TYPES:
        wrong.append(f"rope_type '{rope['rope_type']}' is none of {', '.join(ROPE_TYPES)}")
    if rope["rope_type"] == "yarn" and not rope.get("truncate", True):
        wrong.append("YaRN's range of dimensions is not rounded (truncate is False)")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        wrong.append("only a part of each head is rotated (partial_rotary_factor)")
    if wrong:
        raise InputError(faults=[Fault(where=where, what=what, hint=WAY_OUT) for what in wrong])


def _sizes(config: Any) -> tuple[int, int, int]:
    """(heads, heads of keys and values, the width of one)."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def settings(config: Any) -> dict[str, Any]:
    """GGUF key behind the architecture's name -> value: an int is unsigned, a text is a text."""
    heads, groups, width = _sizes(config)
    rope = config.rope_parameters
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": groups,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = float(rope["factor"])
    if rope["rope_type"] == "yarn":
        before = int(rope["original_max_position_embeddings"])
        values["rope.scaling.original_context_length"] = before
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                values[f"rope.scaling.yarn_{name}"] = float(rope[name])
        # llama.cpp multiplies its own attention factor by this one.
        attention, own = _rotation(config)[1], 0.1 * math.log(max(1.0, float(rope["factor"]))) + 1.0
        if not math.isclose(attention, own):
            values["rope.scaling.attn_factor"] = attention / own
    return values


def _rotation(config: Any) -> tuple[Any, float]:
    """(the frequencies: half a head, what attention is multiplied by), as transformers has them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    make = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    frequencies, attention = make(config, torch.device("cpu"))
    return frequencies, float(attention)


# --------------------------------------------------------------------------- tensors


def tensors(model: Any) -> dict[str, Any]:
    """Every tensor of a model by GGUF's name, rows still in their own order.

    Of Llama 3.1 and later one more says what each frequency is divided by: half a head.

    Raises InputError if GGUF has no name for one.
    """
    config, embeddings = model.config, model.get_input_embeddings().weight
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        # llama.cpp takes the embeddings where there is no output matrix. Whether they are the same
        # says no configuration: transformers ties no two matrices that differ.
        if name == "lm_head.weight" and tensor.data_ptr() == embeddings.data_ptr():
            continue
        called = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise InputError(
                f"GGUF has no place for {name} of a {config.model_type} model", hint=WAY_OUT
            )
        found[called] = tensor
    if config.rope_parameters["rope_type"] == "llama3":
        _, _, width = _sizes(config)
        places = torch.arange(0, width, 2, dtype=torch.float32) / width
        plain = 1.0 / config.rope_parameters["rope_theta"] ** places
        found["rope_freqs.weight"] = plain / _rotation(config)[0]
    return found


def neighbours(rows: Any, heads: int) -> Any:
    """The rows of all heads, so that those that llama.cpp rotates together stand side by side.

    Args:
        rows: out, in (or out alone); out is heads × width.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def numbers(tensor: Any, heads: int | None) -> Any:
    """A tensor as a numpy array of float32; the rows of so many heads as llama.cpp rotates them."""
    return (neighbours(tensor, heads) if heads else tensor).float().contiguous().numpy()


# --------------------------------------------------------------------------- the file


def write_model(
    model: Any, tokens: Tokens, path: Path, *, kind: str = "", name: str = ""
) -> tuple[str, str]:
    """Write a model, which is on the CPU, as GGUF. Returns the type of the file, and what 16 bits
    cost; nothing for 8.

    Raises InputError for a model that GGUF cannot hold.

    Args:
        kind: F16, BF16, Q8_0, or empty for the 16-bit type that loses nothing, or else least.
        name: What the file calls the model.
    """
    config = model.config
    sixteen, rounding = sixteen_bit(model)
    kind = kind or sixteen
    heads, groups, _ = _sizes(config)
    turned = {"attn_q": heads, "attn_k": groups} if config.model_type in NEIGHBOURS else {}
    values: dict[str, Any] = {
        "general.name": name,
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[f"MOSTLY_{kind}"]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    values |= {f"{config.model_type}.{key}": value for key, value in settings(config).items()}
    types = gguf.GGUFValueType
    type_of = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    lazy = gguf.LazyNumpyTensor
    writer = gguf.GGUFWriter(path, config.model_type)
    try:
        for key, value in (values | tokens.values).items():
            writer.add_key_value(key, value, type_of.get(type(value), types.ARRAY))
        for name, tensor in tensors(model).items():
            # llama.cpp computes with norms and biases in 32 bit; a block of 8 bits is 32 long.
            stored = "F32" if tensor.dim() == 1 else sixteen if tensor.shape[-1] % 32 else kind
            type_ = gguf.GGMLQuantizationType[stored]
            shape = lazy.meta_with_dtype_and_shape(numpy.float32, tuple(tensor.shape))
            read = partial(numbers, heads=turned.get(name.split(".")[-2]))
            data = gguf.quantize(lazy(meta=shape, args=(tensor,), func=read), type_)
            writer.add_tensor(name, data, raw_dtype=type_)
        with waiting("writing GGUF"):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        writer.close()
    return kind, rounding if kind == sixteen else ""


def sixteen_bit(model: Any) -> tuple[str, str]:
    """(F16 or BF16, what it costs): the type of the weights themselves if they have 16 bits.

    Of 32-bit weights F16 keeps 11 bits of each number and BF16 8, so F16 is taken unless a number
    is too large for it.
    """
    own = {"torch.float16": "F16", "torch.bfloat16": "BF16"}.get(str(model.dtype))
    if own is not None:
        return own, "the weights have 16 bits already: nothing is rounded"
    matrices = (one for one in model.state_dict().values() if one.dim() > 1)
    largest = max(float(one.abs().max()) for one in matrices)
    if largest > F16_LARGEST:
        return "BF16", f"a weight of {largest:.3g} is too large for F16: rounded to bfloat16"
    return "F16", "32-bit weights rounded to F16"


# --------------------------------------------------------------------------- the tokenizer


@dataclass(kw_only=True)
class Tokens:
    values: dict[str, Any]  # GGUF key -> value
    begins: bool = False  # llama.cpp puts the first token in front of a text
    ends: list[int] = field(default_factory=list)  # tokens that end an answer
    notes: list[str] = field(default_factory=list)  # what GGUF cannot hold, in sentences


def in_template(tokenizer: Any, question: str) -> str:
    """A question as the chat template writes it; without a template, as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return question
    asked = [{"role": "user", "content": question}]
    with reading(tokenizer.name_or_path, "the chat template"):
        return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))


def read_tokens(tokenizer: Any, folder: Path, vocab_size: int) -> Tokens:
    """The tokenizer of a model folder. Raises InputError where llama.cpp has no such tokenizer.

    Args:
        vocab_size: Rows of the embeddings. Those without a token get a name of their own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(folder, "it has no tokenizer.json that transformers can use")
    state = json.loads(backend.to_str())
    if (kind := state["model"]["type"]) != "BPE" or state["model"].get("byte_fallback"):
        raise _refused(folder, f"it is of the kind {kind} and does not merge bytes")
    found = Tokens(values=_vocabulary(state, vocab_size))
    if (count := len(found.values["tokenizer.ggml.tokens"])) > vocab_size:
        raise _refused(folder, f"it has {count} tokens, and the model {vocab_size} embeddings")
    if state["normalizer"] is not None:
        if (kind := state["normalizer"]["type"]) != "NFC":
            raise _refused(folder, f"it changes texts first ({kind})")
        found.notes.append(
            "the tokenizer composes accents first (NFC), and llama.cpp does not: send composed text"
        )
    found.values["tokenizer.ggml.pre"] = _way_of_cutting(state, folder)
    _special(found, tokenizer, folder)
    return found


def _refused(folder: Path, why: str) -> InputError:
    return InputError(
        f"llama.cpp does not know this tokenizer: {why}", where=str(folder), hint=WAY_OUT
    )


def _vocabulary(state: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Every token by its number, its kind, and the merges in their order."""
    added = {token["id"]: token for token in state["added_tokens"]}
    names = {number: text for text, number in state["model"]["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    kinds = []
    for number in range(max(vocab_size, max(names) + 1)):
        kind = TokenType.NORMAL if number in names else TokenType.UNUSED
        names.setdefault(number, f"[PAD{number}]")
        if number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        kinds.append(int(kind))
    merges = state["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [names[number] for number in range(len(kinds))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [one if isinstance(one, str) else " ".join(one) for one in merges],
    }


def _way_of_cutting(state: Mapping[str, Any], folder: Path) -> str:
    """GGUF's name for the steps by which a tokenizer cuts a text. Raises InputError."""
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
    return name


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


def _special(found: Tokens, tokenizer: Any, folder: Path) -> None:
    """Special tokens, what is added to a text, and the chat template. An answer ends at the token
    of the tokenizer and those that generation_config.json adds.
    """
    named = (read_json(folder / "generation_config.json") or {}).get("eos_token_id")
    ends = dict.fromkeys([tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])])
    found.ends = [int(number) for number in ends if number is not None]
    special = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        # llama.cpp ends an answer at each of these three.
        **dict(zip(("eos", "eot", "eom"), found.ends, strict=False)),
    }
    found.values |= {
        f"tokenizer.ggml.{name}_token_id": number
        for name, number in special.items()
        if number is not None
    }
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    whole, text = tokenizer("x")["input_ids"], in_template(tokenizer, "x")
    found.begins = whole[0] == tokenizer.bos_token_id
    if template:  # the training had what it writes, and nothing else
        found.begins = found.begins and text.startswith(tokenizer.bos_token)
        found.values["tokenizer.chat_template"] = with_fixed_arguments(template)
    else:
        found.notes.append(
            "the model has no chat template: programs that chat with it will guess one"
        )
    found.values["tokenizer.ggml.add_bos_token"] = found.begins
    adds_end = not template and len(whole) > 1 and whole[-1] in found.ends
    found.values["tokenizer.ggml.add_eos_token"] = adds_end
