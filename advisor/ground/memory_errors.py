"""What a text says of memory that ran out: PyTorch's messages of all years on CUDA, ROCm and Apple,
bitsandbytes', vLLM's, and processes that the system killed.
"""

from __future__ import annotations

import html
import re
from typing import Any

from msgspec import Struct

SIZE = r"([\d.]+) ?(TiB|GiB|MiB|KiB|TB|GB|MB|KB|bytes)"
GIB_OF = {"t": 2**10, "g": 1.0, "m": 2**-10, "k": 2**-20, "b": 2**-30}  # GB of PyTorch are GiB, too
NOISE = re.compile(
    r"\x1b\[[0-9;]*[A-Za-z]|</?[a-z][^<>\n]{0,200}>|(?m:^\s*(?:\[rank\d+\]:|[│┃|]))|[│┃╭╮╰╯❱]|─{2,}"
)
MESSAGES = (  # kind, what it looks like; the first in the text counts
    ("mps", r"MPS backend out of memory"),
    ("torch", r"(?:CUDA|HIP|XPU|NPU) out of memory"),
    ("torch", r"Tried to allocate [\d.]+ \w+[^\n]*(?:total capacity|is free)"),
    ("bitsandbytes", r"(?i:error out of memory) at line \d+ in file"),
    (
        "vllm",
        r"\([^()\n]{1,30}KV cache is needed, which is|No available memory for the cache blocks",
    ),
    (
        "cuda_error",
        r"(?i:(?:CUDA|HIP)(?: driver| runtime)? error:? (?:\d+: )?out of memory)"
        r"|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    ),
    ("host", r"DefaultCPUAllocator: (?:not enough memory|can't allocate memory)"),
    (
        "killed",
        r"exit ?code:? ?(?:-9\b|137\b)|return ?code ?[=:]? ?-9\b|Signals\.SIGKILL|\(SIGKILL\)"
        r"|Out of memory: Kill|OOMKilled|oom-kill|(?m:^(?:.*: line \d+:\s+\d+ )?Killed\b)",
    ),
)
FOUND = tuple((kind, re.compile(pattern)) for kind, pattern in MESSAGES)
NUMBERS = {  # field(s) -> pattern; each size is two groups
    "tried_gib": rf"[Tt]ried to allocate {SIZE}",
    "total_gib free_gib": rf"total capaci?ty of {SIZE} of which {SIZE} is free",
    "total_gib allocated_gib free_gib reserved_gib": (
        rf"; {SIZE} total capacity; {SIZE} already allocated; {SIZE} free; {SIZE} reserved in total"
    ),
    "total_gib allocated_gib free_gib unallocated_gib": (
        rf"; {SIZE} total capacity; {SIZE} already allocated; {SIZE} free; {SIZE} cached"
    ),
    "this_process_gib": rf"this process has {SIZE} memory in use",
    "allocated_gib": rf"memory {SIZE} is allocated by PyTorch",
    "unallocated_gib": rf"and {SIZE} is reserved by PyTorch but unallocated",
    "allocated_gib total_gib": rf"MPS allocated: {SIZE}.*?max allowed: {SIZE}",
    "tried_gib free_gib": (
        rf"\({SIZE} KV cache is needed, which is larger than the available KV cache memory"
        rf" \({SIZE}\)"
    ),
}
MOMENTS = {  # from the one that says most
    "saving": (
        r"\b(?:save_pretrained|_?save_model|_?save_checkpoint|_save_to_state_dict|save_file"
        r"|merge_and_unload|save_state_dict|_gather_state_dict|state_dict)\b"
    ),
    "optimizer step": (
        r"torch[/\\]optim[/\\]|optimizer\.step|bitsandbytes[/\\]optim|exp_avg|_take_model_step"
        r"|initialize_optimizer_states|in step\b"
    ),
    "backward": r"in backward\b|run_backward|\.backward\(|autograd[/\\]__init__",
    "evaluation or generation": (
        r"\bin (?:evaluate|evaluation_loop|prediction_step|predict|_?sample|_?generate\w*"
        r"|greedy_search)\b|\.generate\(|[/\\]vllm[/\\]"
    ),
    "loss": (
        r"cross_entropy|log_softmax|logsumexp|loss_fct|ForCausalLMLoss|per_token_logps"
        r"|logits\.float|logits\.to\(|loss_function|get_batch_logps|in nll_loss"
    ),
    "loading the model": (
        r"from_pretrained|load_checkpoint|set_module_tensor_to_device|get_peft_model"
        r"|_load_state_dict|_load_pretrained|prepare_model_for|quantize_4bit"
    ),
    "forward": r"\bin forward\b|_call_impl|\.softmax\(|hidden_states|attention_\w+",
}
TRACEBACK = "Traceback (most recent call last)"
LONGEST = 2_500  # characters of a message


class MemoryRanOut(Struct, frozen=True, kw_only=True):
    """One message, and when it came. What it does not say is None."""

    kind: str  # torch | cuda_error | bitsandbytes | vllm | mps | host | killed
    moment: str | None = None  # of MOMENTS, by the frames around it
    device: int | None = None
    tried_gib: float | None = None
    total_gib: float | None = None
    free_gib: float | None = None
    allocated_gib: float | None = None  # by PyTorch, in use
    unallocated_gib: float | None = None  # reserved by PyTorch, not in use
    this_process_gib: float | None = None
    processes_gib: tuple[float, ...] = ()  # of each process that is named


def memory_error(text: str) -> MemoryRanOut | None:
    """The first message about memory that ran out in a text; None if there is none."""
    text = NOISE.sub(" ", html.unescape(text.replace("\r", "")))
    places = [(one.start(), kind) for kind, regex in FOUND if (one := regex.search(text))]
    if not places:
        return None
    at, kind = min(places)
    # A line that a terminal cut may be cut inside a number.
    message = re.sub(r"(?<=\d)\n(?=[\d.])|(?<=\d\.)\n(?=\d)", "", text[at : at + LONGEST])
    first = "out of memory".join(" ".join(message.split()).split("out of memory")[:2])
    found = _numbers(first)
    return MemoryRanOut(kind=kind, moment=_moment(text, at, kind), **found)


def _numbers(message: str) -> dict[str, Any]:
    """The fields that one message has."""
    found: dict[str, Any] = {}
    for fields, pattern in NUMBERS.items():
        if one := re.search(pattern, message):
            sizes = [
                _gib(*one.groups()[place : place + 2]) for place in range(0, len(one.groups()), 2)
            ]
            found |= {
                key: size
                for key, size in zip(fields.split(), sizes, strict=True)
                if size is not None
            }
    if (reserved := found.pop("reserved_gib", None)) is not None:
        found["unallocated_gib"] = max(0.0, reserved - found["allocated_gib"])
    if one := re.search(r"\bGPU (\d{1,4})\b", message):
        found["device"] = int(one[1])
    each = re.findall(rf"Process \d+ has {SIZE} memory in use", message)
    found["processes_gib"] = tuple(_gib(*one) for one in each)
    return found


def _gib(number: str, unit: str) -> float:
    digits = number.strip(".").split(".")  # a number at the end of a sentence, or a broken one
    return float(".".join(digits[:2]) or 0) * GIB_OF[unit[0].lower()]


def _moment(text: str, at: int, kind: str) -> str | None:
    """What was going on, by the names around the message: of the traceback that it ends, else of
    what follows it.
    """
    if kind == "vllm":
        return "evaluation or generation"
    before = text[max(0, text.rfind(TRACEBACK, 0, at)) : at]
    for part in (before, text[at:]):
        for moment, pattern in MOMENTS.items():
            if re.search(pattern, part):
                return moment
    return None
