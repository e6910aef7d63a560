"""The cells of the table: a plan for each strategy, update and objective."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import save_tiny_model
from tests.distributed.comparing import LIMIT, LIMIT_MIXED

MODEL, TEACHER, TRANSLATOR = "model", "teacher", "translator"
MIXTURE, ENCODER, UNTIED = "mixture", "encoder", "untied"
MICRO, STEP_ROWS, STEPS = 4, 16, 4
STAGE: dict[str, Any] = {
    "name": "s",
    "learning_rate": 1e-3,
    "max_steps": STEPS,
    "micro_batch_size": MICRO,
    "seq_len": 128,
    "holdout": 0.1,
    "weights_dtype": "float32",
    "optimizer": "adamw",
}
WRITES = {"max_steps": 2, "response_tokens": 6, "reward": "own.py:score"}
SAMPLES = {**WRITES, "generations": 4}


@dataclass(frozen=True)
class Lesson:
    """An objective with its data."""

    data: str
    keys: Mapping[str, Any]
    model: str = MODEL
    samples: bool = False  # each process has samples of its own


LESSONS: Mapping[str, Lesson] = {
    "sft": Lesson("chats", {"objective": "sft"}),
    "sft, classes": Lesson("labels", {"objective": "sft", "head": "classes"}),
    "sft, seq2seq": Lesson("rewritings", {"objective": "sft", "head": "seq2seq"}, TRANSLATOR),
    "cpt": Lesson("texts", {"objective": "cpt", "seq_len": 32}),
    "distill": Lesson("chats", {"objective": "distill", "teacher": TEACHER, "on_policy": 0.0}),
    "dpo": Lesson("pairs", {"objective": "dpo"}),
    "orpo": Lesson("pairs", {"objective": "orpo"}),
    "simpo": Lesson("pairs", {"objective": "simpo"}),
    "kto": Lesson("votes", {"objective": "kto"}, samples=True),
    "rm": Lesson("pairs", {"objective": "rm"}),
    "grpo": Lesson("pairs", {"objective": "grpo", **SAMPLES}, samples=True),
    "rloo": Lesson("pairs", {"objective": "rloo", **SAMPLES}, samples=True),
    "ppo": Lesson("pairs", {"objective": "ppo", **WRITES, "kl_limit": 100}, samples=True),
}
UPDATES: Mapping[str, Mapping[str, Any]] = {
    "full": {"update": "full"},
    "lora": {"update": "lora", "rank": 4},
    "lora, nf4": {"update": "lora", "rank": 4, "quantization": "nf4"},
    "lora, int8": {"update": "lora", "rank": 4, "quantization": "int8"},
    "adapter": {"update": "adapter"},
    "prefix": {"update": "prefix", "prefix_tokens": 4},
    "ia3": {"update": "ia3"},
}
ONE, DDP, FSDP = "one process", "ddp", "fsdp"
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    ONE: {},
    DDP: {"strategy": "ddp"},
    FSDP: {"strategy": "fsdp"},
}
PURE, MIXED = "pure", "mixed"
PRECISIONS = (PURE, MIXED)


@dataclass(frozen=True)
class Cell:
    """One training: how it is shared, what trains, what for, and in which precision."""

    strategy: str
    update: str
    objective: str
    precision: str = PURE

    @property
    def name(self) -> str:
        """What is trained, however it is shared."""
        return f"{self.objective}: {self.update}, {self.precision}"

    @property
    def place(self) -> tuple[str, str]:
        """The same, and how it is shared."""
        return self.name, self.strategy

    def is_any_of(self, words: Collection[str]) -> bool:
        """Whether one of the words names it, or there is none."""
        mine = {self.strategy, self.update, self.objective, self.precision}
        return not words or bool(mine & set(words))

    @property
    def casts(self) -> bool:
        """Whether all weights are cast to 16 bits, which one process does in products alone."""
        return (self.strategy, self.update, self.precision) == (FSDP, "full", MIXED)

    @property
    def limit(self) -> float:
        """How far it may be from one process."""
        return LIMIT_MIXED if self.precision == MIXED else LIMIT

    @property
    def file(self) -> str:
        """The name of its plan."""
        words = f"{self.objective} {self.update} {self.precision} {self.strategy}"
        return f"{words.replace(',', '').replace(' ', '-')}.yaml"


def all_cells() -> Iterator[Cell]:
    """Every cell of the table."""
    for strategy in STRATEGIES:
        for objective in LESSONS:
            for update in UPDATES:
                for precision in PRECISIONS:
                    yield Cell(strategy, update, objective, precision)


def write_plan(
    folder: Path, cell: Cell, *, processes: int = 2, name: str = "", **keys: Any
) -> Path:
    """The plan of a cell, whose optimizer step has as many rows on any number of processes.

    Args:
        folder: Where the models and rows lie.
        processes: Of every strategy but `one process`.
        name: In front of the name of the file.
        keys: Of the stage, in place of those of the cell; `data` and `model` of the plan.
    """
    lesson = LESSONS[cell.objective]
    count = 1 if cell.strategy == ONE else processes
    model, data = keys.pop("model", lesson.model), keys.pop("data", lesson.data)
    micro = keys.get("micro_batch_size", MICRO)
    stage = {
        **STAGE, **lesson.keys, **UPDATES[cell.update],
        "precision": cell.precision, "grad_accum": STEP_ROWS // (micro * count), **keys,
    }  # fmt: skip
    launch = {**STRATEGIES[cell.strategy], **({"processes": count} if count > 1 else {})}
    plan = {
        "version": 1,
        "name": "table",
        "model": f"./{model}",
        "data": {"path": f"{data}.jsonl"},
        "stages": [{key: value for key, value in stage.items() if value is not None}],
        "launch": {"device": "cpu", **launch},
    }
    path = folder / f"{name}{cell.file}"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


# --------------------------------------------------------------------------- models and rows

REWARD = (
    "def score(prompts, completions, **columns):\n"
    "    return [text.count('e') / (1 + len(text)) for text in completions]\n"
)
ROWS = 80  # four steps of sixteen, and some held out
WORDS = ("red", "blue", "green", "tea", "cup", "kettle", "shop", "parcel")


def _chat(n: int) -> dict[str, Any]:
    asked, said = f"Where is parcel {n}?", f"Thank you, parcel {n} is in the red van."
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    }


def _label(n: int) -> dict[str, Any]:
    return {"text": f"kettle {n} is {WORDS[n % 8]}", "label": "good" if n % 3 else "bad"}


def _rewriting(n: int) -> dict[str, Any]:
    word = WORDS[n % 8]
    return {"prompt": f"{WORDS[n // 8 % 8]} {word} {n}", "completion": word.upper()}


def _text(n: int) -> dict[str, Any]:
    told = " ".join(f"The shop sells tea number {n + at}, cups and kettles." for at in range(3))
    return {"text": told}


def _pair(n: int) -> dict[str, Any]:
    more = " We look at the cups." if n % 2 else ""
    return {
        "prompt": f"Where is order {n}?",
        "chosen": f"Thank you for writing, order {n}.{more}",
        "rejected": f"Go away, order {n}.",
    }


def _vote(n: int) -> dict[str, Any]:
    good, bad = f"Thank you for writing, order {n}.", f"Go away, order {n}."
    return {
        "prompt": f"Where is order {n}?",
        "completion": bad if n % 2 else good,
        "label": n % 2 == 0,
    }


DATA: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "chats": _chat, "labels": _label, "rewritings": _rewriting, "texts": _text, "pairs": _pair,
    "votes": _vote,
}  # fmt: skip


def fill(folder: Path) -> None:
    """Write the models and the rows."""
    for name, row in DATA.items():
        lines = (json.dumps(row(n)) + "\n" for n in range(ROWS))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "own.py").write_text(REWARD)
    (folder / MODEL).mkdir()
    save_tiny_model(folder / MODEL)
    _save_teacher(folder)
    _save_translator(folder / TRANSLATOR)
    _save_others(folder)


def _save_teacher(folder: Path) -> None:
    """The tiny model with other weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / MODEL)
    torch.manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one) * 0.02)
    model.save_pretrained(folder / TEACHER)
    AutoTokenizer.from_pretrained(folder / MODEL).save_pretrained(folder / TEACHER)


def _save_translator(folder: Path) -> None:
    """A random T5."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from tests.trainers.test_seq2seq import save_tokenizer

    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def _save_others(folder: Path) -> None:
    """A mixture of experts, an encoder, and the tiny model with an output layer of its own."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from tests.trainers.moe import tiny_mixture

    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, **ends}
    mixture = tiny_mixture("qwen3_moe", **size)
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    known = LlamaConfig.from_pretrained(folder / MODEL)
    known.tie_word_embeddings = False
    for name, model in ((MIXTURE, mixture), (ENCODER, encoder), (UNTIED, LlamaForCausalLM(known))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
