"""One training of a plan on its way into another tool's file, and what several tools share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.extras.other_tools.mapping import Lost
from advisor.extras.other_tools.rows import TEXT, Layout, Rows
from advisor.extras.other_tools.tool import Tool
from advisor.plan.entries import Entry
from advisor.plan.model import Plan

EVALUATIONS = 0.1  # of all steps: about ten, as in a run
TRAIN, TEST = "train.jsonl", "test.jsonl"
ZERO = {"zero2": 2, "zero3": 3}
MASK_NOTE = "it learns what the template writes behind an answer too, such as a line end"
FLASH = "flash_attention_2"


@dataclass(kw_only=True, slots=True)
class Job:
    """What is written for one training."""

    tool: Tool
    plan: Plan
    entry: Entry
    place: str  # of this training in the names of its files: "", "legal", "2-dpo"
    model: str  # a hub id, a folder, or the result of the training before
    rows: Rows | None = None  # None: a data set of the hub, whose name is passed on
    layout: Layout | None = None
    values: dict[str, Any] = field(default_factory=dict)  # their keys, in the order of the file
    because: dict[str, str] = field(default_factory=dict)  # their key -> the comment beside it
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # commands to be given first
    files: dict[str, str] = field(default_factory=dict)  # further files: name -> text
    columns: Mapping[str, Any] = field(default_factory=dict)  # the same in every row
    command: str = ""  # of the tool's command line
    written: Mapping[str, int] = field(default_factory=dict)  # data file -> rows

    @property
    def folder(self) -> str:
        """Where its data lies, in the folder of the export."""
        return f"data/{self.place}" if self.place else "data"

    @property
    def output(self) -> str:
        """Where the tool writes its result."""
        return f"out/{self.place}" if self.place else "out"

    @property
    def file(self) -> str:
        """The name of the configuration: trl.yaml, trl.2-dpo.yaml."""
        stem, dot, ending = self.tool.file.rpartition(".")
        return f"{stem}.{self.place}{dot}{ending}" if self.place else self.tool.file

    @property
    def evaluates(self) -> bool:
        """Whether rows are held out."""
        return self.rows is not None and any(self.rows.held)

    def put(self, key: str, value: Any, because: str = "") -> None:
        """Write a key of theirs, with a comment."""
        self.values[key] = value
        if because:
            self.because[key] = because

    def found(self, ours: str) -> bool:
        """Drop what was noted as lost of a key of ours, since it is said in another way."""
        before = len(self.lost)
        self.lost = [one for one in self.lost if one.key != ours]
        return len(self.lost) < before


def long_texts(job: Job, *, is_split: Any) -> None:
    """Say what happens to texts over the length, which a run splits without loss, whatever
    `truncation` says.
    """
    if job.layout is None or job.layout.name != TEXT or not job.found("truncation"):
        return
    why = (
        "it is about rows; texts over the length are split, as in a run"
        if is_split
        else "texts over the length are cut there; a run splits them"
    )
    value = job.entry.stage.truncation
    job.lost.append(Lost(key="truncation", value=value, why=why))


def keep_packed_rows_apart(job: Job, *, packing: str) -> None:
    """Ask for the attention without which packed rows see each other, or pack none.

    Args:
        packing: What the tool calls it.
    """
    attention = job.values.get("attn_implementation")
    if not job.values.get(packing) or (attention and "flash" in str(attention)):
        return
    if job.plan.launch.device == "cuda":
        job.put(
            "attn_implementation", FLASH,
            f"packed rows see each other without it: pip install flash-attn, or {packing}: false",
        )  # fmt: skip
        job.lost.append(
            Lost(
                key="attention",
                value=job.entry.stage.attention,
                why=f"packed rows see each other there without {FLASH}, which is written",
            )
        )
        return
    for key in (packing, "eval_sample_packing", "pad_to_sequence_len"):
        if key in job.values:
            job.put(key, False)
    job.lost.append(
        Lost(
            key="packing",
            value=True,
            why="packed rows see each other there without a flash attention, which needs a GPU",
        )
    )


def evaluation(job: Job, batch: str) -> None:
    """Held-out rows are measured about ten times, as in a run."""
    if not job.evaluates:
        job.put("eval_strategy", "no", "no rows are held out")
        return
    job.put("eval_strategy", "steps")
    job.put("eval_steps", EVALUATIONS, "a share of all steps: ten times")
    job.put(batch, job.entry.stage.micro_batch_size)


def hub_name(job: Job) -> str:
    """The name of a data set that stays on the hub."""
    job.notes.append("the data set stays on the hub: its columns must be those that the tool reads")
    job.notes.append("no rows are held out, since they were not read")
    return job.entry.data.path


def deepspeed(job: Job) -> None:
    """DeepSpeed's own file, which these tools name."""
    stage = ZERO.get(job.plan.launch.strategy or "")
    if stage is None:
        return
    auto = "auto"
    settings = {
        "train_batch_size": auto, "train_micro_batch_size_per_gpu": auto,
        "gradient_accumulation_steps": auto, "gradient_clipping": auto,
        "bf16": {"enabled": auto}, "fp16": {"enabled": auto},
        "zero_optimization": {
            "stage": stage, "overlap_comm": True, "contiguous_gradients": True,
            **({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}),
        },
    }  # fmt: skip
    name = f"deepspeed-zero{stage}.json"
    job.files[name] = json.dumps(settings, indent=2)
    job.put("deepspeed", name)
    job.found("strategy")


def upload(job: Job, **more: Any) -> None:
    """Have the result of a plan's last stage uploaded where `push_to` says, once and privately.

    Args:
        more: What the tool needs beside the name.
    """
    target = job.plan.extra_key("hub", "push_to")
    if not job.found("push_to") or target is None:
        return
    task = job.entry.task.name if job.entry.task else None
    if job.entry.stage.name == job.plan.stages[-1].name:
        name = f"{target}-{task}" if task else target
        job.put("hub_model_id", name, "whatever came of it: nothing is checked")
        job.put("hub_strategy", "end", "no checkpoints")
        for key, value in more.items():
            job.put(key, value)
