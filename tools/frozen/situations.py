"""Random situations and the documents that answer them.

`python -P situations.py < ANSWERS > DOCUMENTS` answers a JSON list with the advisor on PYTHONPATH:
it reaches no other module than advisor.api, so that it runs in a tree of any day.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

Answers = dict[str, Any]
ENCODER = "answerdotai/ModernBERT-base"  # drawn for what it can do alone
# Fact -> (how often it is stated, the values to draw from). A choice that is not named here is
# stated in three of ten situations, a signal in one of 25.
DRAWN: dict[str, tuple[float, tuple[Any, ...]]] = {
    "n_tasks": (0.1, (2, 5, 12)),
    "tasks": (0.03, ({"legal": "paired.jsonl", "support": "paired.jsonl"},)),
    "data_path": (
        0.5,
        ("paired.jsonl", "preference.jsonl", "feedback.jsonl", "problems.jsonl", "text.txt"),
    ),
    "data_examples": (0.05, ("paired.jsonl",)),
    "data_kind": (0.7, ()),
    "data_rows": (0.6, (20, 300, 1500, 30_000, 200_000)),
    "data_tokens": (0.4, (50_000, 1_500_000, 30_000_000)),
    "budget_usd": (0.15, (0, 5, 20, 500)),
    "budget_hours": (0.1, (1, 12)),
    "model": (
        0.7,
        (
            "Qwen/Qwen3-8B",
            "Qwen/Qwen3-0.6B",
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Llama-3.1-70B",
            "Qwen/Qwen3-30B-A3B",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            ENCODER,
        ),
    ),
    "model_params_b": (0.1, (0.5, 3, 14)),
    "gpu": (
        1,
        ("RTX 4090", "RTX 3090", "A100 80GB", "T4", "RTX 4060 8GB", "H100 80GB", "none", "unknown"),
    ),
    "gpus": (0.2, (2, 3, 8)),
    "nodes": (0.03, (2,)),
    "teacher_model": (0.05, ("Qwen/Qwen3-32B",)),
}
NOT_WITH = {  # of two that contradict each other the first stays
    "tasks": ("data_path", "data_kind", "data_rows", "data_tokens", "n_tasks"),
    "data_path": ("data_kind", "data_rows", "data_tokens"),
    "budget": ("budget_usd", "budget_hours"),
    "model": ("model_params_b",),
}
NO_CACHES = dict.fromkeys(("HF_HOME", "XDG_CACHE_HOME"), os.devnull)  # no model is here
MACHINE = {
    "/proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 33554432 kB\n",
    "/proc/cpuinfo": "model name : a processor\nflags : avx512_bf16\n",
}
INSTALLED = ("software", "torch_target")
DISK = SimpleNamespace(f_bavail=2**24, f_bfree=2**24, f_blocks=2**25, f_frsize=4096)


def drawn_answers(facts: Mapping[str, Any], seed: int, number: int) -> Answers:
    """One random situation as an answers document. Each fact is drawn by itself: one more in
    rules/facts.yaml changes no other.
    """
    known: Answers = {}
    signals: dict[str, bool] = {}
    for name, fact in facts.items():
        own = random.Random(f"{seed}/{number}/{name}")  # noqa: S311
        share, values = DRAWN.get(name, (0.3, ()))
        values = values or tuple(fact.get("values") or ())
        if fact.get("signal") and own.random() < 0.06:
            signals[name] = own.random() < 0.7
        elif name == "task" or (fact.get("answer") and values and own.random() < share):
            known[name] = own.choice(values)
    for name, others in NOT_WITH.items():
        if name in known:
            known = {key: value for key, value in known.items() if key not in others}
    if known.get("gpu") in ("none", "unknown"):
        known = {key: value for key, value in known.items() if key not in ("gpus", "nodes")}
    if known.get("data_kind") == "none":
        known = {
            key: value for key, value in known.items() if key not in ("data_rows", "data_tokens")
        }
    if known.get("model") == ENCODER and known["task"] != "classification":
        del known["model"]
    return answers_document(facts, known | signals)


def answers_document(facts: Mapping[str, Any], known: Mapping[str, Any]) -> Answers:
    """The stated facts as the keys of an answers file; what nobody can state is left out, and the
    machine is never asked.
    """
    document: Answers = {}
    for name, value in known.items():
        place = facts[name].get("answer")
        if facts[name].get("signal"):
            document.setdefault("signals", {})[name] = value
        elif place:
            head, _, tail = place.partition(".")
            if tail:
                document.setdefault(head, {})[tail] = value
            else:
                document[head] = value
    document.setdefault("gpu", {}).setdefault("name", "unknown")
    return document


@contextmanager
def same_machine() -> Iterator[None]:
    """Whatever is read of the processor is the same everywhere: 8 cores, 32 GiB, bfloat16, and
    64 GiB of disk.
    """
    read = Path.read_text

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        is_machine = str(path).startswith(("/proc/", "/sys/"))
        return MACHINE.get(str(path), "") if is_machine else read(path, *args, **kwargs)

    with (
        patch.object(Path, "read_text", read_text),
        patch.object(os, "sched_getaffinity", lambda _: set(range(8)), create=True),
        patch.object(os, "statvfs", lambda _: DISK, create=True),
        patch.dict(os.environ, {"ADVISE_RUNS": "off", "HF_HUB_OFFLINE": "1", **NO_CACHES}),
    ):
        os.environ.pop("ADVISE_RULES", None)
        yield


def document_of(answers: Answers) -> dict[str, Any]:
    """What `advise --json` says but for what is installed here and the digest of the rules, which
    each word of a rule would change, or the refusal.
    """
    from advisor.api import AdviseError, advise_document

    try:
        document = advise_document(answers)
    except AdviseError as error:
        return {"refused": str(error).splitlines()}
    machine = document.get("hardware") or {}
    document["hardware"] = {name: machine[name] for name in machine if name not in INSTALLED}
    digest = document["rules"]["digest"]
    return dict(json.loads(json.dumps(document).replace(digest, "")))


def situation_line(number: int, answers: Answers, document: Mapping[str, Any]) -> str:
    """The line in tests/frozen/situations.txt: number, answers, composition, digest."""
    recommended = document.get("recommendation") or {}
    told = json.dumps(_rounded(document), sort_keys=True).encode()
    parts = (
        str(number),
        json.dumps(answers),
        str(recommended.get("composition", "refused")),
        hashlib.sha256(told).hexdigest()[:12],
    )
    return " | ".join(parts)


def _rounded(value: Any) -> Any:
    """The document without the digits in which two machines may differ."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    with same_machine():
        json.dump([document_of(answers) for answers in json.load(sys.stdin)], sys.stdout)
