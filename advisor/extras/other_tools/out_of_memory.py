"""A text that says that memory ran out: what it says in words, what that means, and what to do."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from advisor.commands.check_options import CheckOptions
from advisor.commands.output import print_json, put
from advisor.extras.other_tools.printed_log import MOST_LOG, last_error, printed
from advisor.ground.errors import InputError
from advisor.ground.files import read_at_most
from advisor.ground.memory_errors import MemoryRanOut, memory_error
from advisor.ground.wrap import on_lines

# What a program writes at the start of a line, not what somebody tells of it.
OF_AN_ERROR = re.compile(
    r"(?m)^.{0,200}?(?:\w*Error\b ?:|Exception:|Traceback \(most|ERROR\b|exit ?code)"
)
DURING = {
    "loading the model": "while loading the model",
    "forward": "in the forward pass",
    "loss": "while computing the loss",
    "backward": "in the backward pass",
    "optimizer step": "in the optimizer step",
    "evaluation or generation": "while evaluating or generating",
    "saving": "while saving",
}
WORDS = {
    "cuda_error": "The GPU had no memory left, and the message holds no numbers.",
    "bitsandbytes": "bitsandbytes got no memory on the GPU, and its message holds no numbers.",
    "vllm": "vLLM found no room for its cache of keys and values.",
    "host": "The computer's own memory ran out, not that of the GPU.",
    "killed": (
        "The system ended a process (signal 9): nearly always because the computer's own memory,"
        " not that of the GPU, ran out."
    ),
}
MEANS = {
    "loading the model": (
        "The model alone did not fit: fewer rows do not help. Load it in 4 bits or in 16 bits"
        " instead of 32, or take a smaller one."
    ),
    "forward": (
        "Activations of the rows did not fit: fewer rows at a time, shorter rows, or gradient"
        " checkpointing."
    ),
    "loss": (
        "The scores of all words for all tokens did not fit (rows x tokens x vocabulary): fewer"
        " rows at a time, shorter rows, or a loss in parts (use_liger_kernel; TRL has one of its"
        " own since 1.7, in DPO and others since 1.15)."
    ),
    "backward": (
        "Activations and gradients did not fit: fewer rows at a time, gradient checkpointing, or"
        " fewer trained weights (LoRA)."
    ),
    "optimizer step": (
        "The optimizer's states are made in the first step and did not fit: an 8-bit or paged"
        " optimizer, or LoRA. Fewer rows help little."
    ),
    "evaluation or generation": (
        "It is not the training that ran out: per_device_eval_batch_size and"
        " eval_accumulation_steps, shorter answers, or less memory for vLLM"
        " (vllm_gpu_memory_utilization) decide it."
    ),
    "saving": (
        "The weights were gathered or copied to be written: save the adapter alone, or gather them"
        " in the computer's memory."
    ),
}
SMALL = 0.05  # of the GPU's memory: what others hold is worth a word above it


def looks_like_memory_error(path: Path) -> bool:
    """Whether a file is the output of a training that ran out of memory. Without errors."""
    text = printed(path)
    return memory_error(text) is not None and (
        path.suffix.lower() != ".txt" or OF_AN_ERROR.search(text) is not None
    )


def read_memory_error(path: str) -> MemoryRanOut:
    """What the text says. Raises InputError if it says nothing of memory."""
    text = read_at_most(Path(path), MOST_LOG).decode("utf-8", "replace")
    if (found := memory_error(text)) is None:
        raise InputError("no message about memory is in it", where=os.fspath(path))
    return found


def in_words(one: MemoryRanOut) -> Iterator[str]:
    """Sentences: what was asked for and what there was; what that means; what to do."""
    parts = []
    if one.tried_gib is not None:
        parts.append(f"it asked for {_size(one.tried_gib)}")
    if one.free_gib is not None:
        of = "" if one.total_gib is None else f" of {_size(one.total_gib)}"
        parts.append(f"{_size(one.free_gib)}{of} were free")
    elif one.total_gib is not None:
        parts.append(f"the most it may take is {_size(one.total_gib)}")
    during = f" {DURING[one.moment]}" if one.moment in DURING else ""
    asked = f": {' and '.join(parts)}" if parts else ""
    yield f"Ran out of memory{during}{asked}. {WORDS.get(one.kind, '')}".strip()
    if one.allocated_gib is not None:
        unused, more = one.unallocated_gib, ""
        if unused is not None:
            more = f", and {_size(unused)} reserved but not in use"
        yield f"PyTorch held {_size(one.allocated_gib)} in use{more}."
    if one.moment in MEANS:
        yield MEANS[one.moment]
    elif one.kind not in ("killed", "host", "vllm"):
        yield "The text does not show what it was doing: the whole traceback would."
    yield from _around(one)


def others_gib(one: MemoryRanOut) -> float:
    """What other processes hold, as far as the message tells."""
    if one.total_gib is None or one.free_gib is None or one.kind != "torch":
        return 0.0
    ours = one.this_process_gib
    if ours is None:
        if one.allocated_gib is None or one.unallocated_gib is None:
            return 0.0
        ours = one.allocated_gib + one.unallocated_gib + CONTEXT_GIB
    return max(0.0, one.total_gib - one.free_gib - ours)


CONTEXT_GIB = 1.0  # of CUDA itself, which the older messages count nowhere


def _around(one: MemoryRanOut) -> Iterator[str]:
    total, tried, unused = one.total_gib, one.tried_gib or 0.0, one.unallocated_gib
    if total is not None and tried > total:
        yield "No GPU of this size holds that one tensor: look for a length or batch far too large."
    if total is not None and (others := others_gib(one)) > SMALL * total:
        yield (
            f"About {_size(others)} are held by other processes: `nvidia-smi` names them; end those"
            " first."
        )
    if one.kind == "torch" and 0 < tried < (unused or 0.0):
        yield (
            "More was reserved than asked for, but in pieces: start it with"
            " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
        )
    if one.kind == "torch" and 0 < 2 * tried < (one.free_gib or 0.0):
        yield "More was free than asked for: another process or a limit may have taken it since."
    if one.kind in ("killed", "host"):
        yield (
            "Give the process more of the computer's memory, use fewer data workers, read the data"
            " in a stream, and let nothing be moved off the GPU (offload, device_map)."
        )
    if one.kind == "vllm":
        yield "Give vLLM more of the GPU (gpu_memory_utilization), or a smaller max_model_len."


def _size(gib: float) -> str:
    return f"{gib:.3g} GiB" if gib >= 1 else f"{gib * 1024:.3g} MiB"


def document_of(one: MemoryRanOut) -> dict[str, Any]:
    """`out_of_memory` of the document."""
    return {**asdict(one), "processes_gib": list(one.processes_gib), "words": list(in_words(one))}


def check_memory_error(path: str, options: CheckOptions) -> int:
    """Say what one text says of memory that ran out. Returns the exit code."""
    hint = "give the script or the configuration beside it: advise check train.py error.txt"
    options.refuse(ABOUT_A_FILE, "an error text alone", hint)
    found = read_memory_error(path)
    told = document_of(found)
    _say(path, told["words"], options, told)
    return 0


def check_other_error(path: str, options: CheckOptions) -> int:
    """Say of an error that is not about memory what it is, and what is explained here."""
    options.refuse(ABOUT_A_FILE, "an error text alone", "check the script or the configuration")
    what = f"An error that is not about memory: {last_error(printed(Path(path)))}"
    why = "Only errors about memory are explained. Check the script, the configuration or the data"
    _say(path, (what, f"{why} that it came from."), options, None)
    return 0


def _say(path: str, words: Sequence[str], options: CheckOptions, told: Any) -> None:
    if options.as_json:
        document = {
            "schema_version": 1, "checked": "script", "path": path, "verdict": "unknown",
            "summary": words[0], "found": {}, "unknown": [], "findings": [], "changes": {},
            "diff": [], "out_of_memory": told,
        }  # fmt: skip
        return print_json(document if told else {**document, "notes": list(words[1:])})
    for line in words:
        put(on_lines(line))
    put("")
    beside = f" {shlex.quote(path)}" if told else ""
    return put(f"Judge the training, too:  advise check train.py{beside}")


ABOUT_A_FILE = {"--plan": "plan_file", "--fix": "fix_to", "--gpu": "gpu"}
