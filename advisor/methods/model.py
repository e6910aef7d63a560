"""Objectives, updates and schemes as values: everything about a method that is not torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Struct, field

from advisor.ground.errors import Fault, InputError, did_you_mean, refuse
from advisor.ground.shape import Choice, Integer, ListOf
from advisor.ground.yaml_files import Spot
from advisor.methods.keys import Key, Refusal

DATA_KINDS = ("paired", "raw_text", "preference", "unpaired_feedback", "prompts_with_verifier")
QUANTIZATIONS = ("nf4", "int8")
NF4_BLOCK = 64  # weights under one scale
SERVERS = ("transformers", "vllm", "ollama")  # the values of `serve_with` that load one form or not


class Method(Struct, frozen=True, kw_only=True):
    """What the files of objectives and of updates have in common."""

    id: str
    axis: str  # objective | update
    name: str  # as a title: "Direct preference optimisation"
    about: str  # what it does, one line for those who know machine learning
    meaning: str  # the same for the legend of an answer
    order: int  # its place in every list
    spot: Spot  # its file
    shipped: bool = True  # False: a folder of one's own brought it (ADVISE_METHODS)
    keys: Mapping[str, Key] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of keys that every stage has
    unused: Mapping[str, str] = field(default_factory=dict)  # such keys that it ignores, and why
    refuses: tuple[Refusal, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)  # beside those of rules/sources.yaml
    arithmetic: str = ""  # module of estimate/methods/ that holds what is special about its cost

    @property
    def at(self) -> str:
        """File, line and column of its id."""
        return (self.spot / "id").at()


class Objective(Method, frozen=True, kw_only=True):
    """What a stage learns."""

    # For people: "show {model} {your}pairs of a better and a worse answer".
    phrase: str
    short: str  # a few words: "learning from pairs"
    trains_on: Annotated[tuple[str, ...], ListOf(of=Choice(values=DATA_KINDS))]
    phrase_judged: str = ""  # the same where a model, {judge}, scores the answers
    # What its trainer can read beside them, though it is not meant for it.
    also_reads: Annotated[tuple[str, ...], ListOf(of=Choice(values=DATA_KINDS))] = ()
    pairs: bool = False  # a row is two sequences
    generates: bool = False  # it learns from answers that the model writes itself
    scores: bool = False  # the result gives a score in place of text, and is a model of its own
    packs: bool = False  # rows are single texts, so that several fit into one sequence
    splits_documents: bool = False  # rows are cut into pieces of seq_len without loss
    # Whether a frozen copy stands beside full fine-tuning.
    reference: Literal["never", "always", "with_beta"] = "never"
    extra_forwards: Annotated[int, Integer(min=0)] = (
        0  # forward passes beside the one that is learned from
    )
    amounts: Mapping[str, Any] = field(default_factory=dict)  # how much data it wants
    # How few rows become enough optimizer steps, and how many of them are held out.
    steps: Mapping[str, Any] = field(default_factory=dict)
    logits: Literal["tiles", "tiles_on_gpu", "whole", "parts", "none"] = "tiles"

    @property
    def sequences_per_row(self) -> int:
        return 2 if self.pairs else 1

    @property
    def answers(self) -> int:
        """Answers to each prompt unless the stage says otherwise; 0 if it writes none."""
        if not self.generates:
            return 0
        return int(self.keys["generations"].default) if "generations" in self.keys else 1

    @property
    def learns_texts(self) -> bool:
        """Whether it learns to write given texts, as supervised fine-tuning does."""
        scored = self.pairs or self.scores or self.generates
        return not scored and not {"paired", "raw_text"}.isdisjoint(self.trains_on)

    @property
    def needs_reward(self) -> bool:
        """Whether something has to score answers while it trains."""
        return "reward_model" in self.keys

    @property
    def takes_verifier(self) -> bool:
        """Whether a program may check its answers."""
        return "verifier" in self.keys


class Variant(Struct, frozen=True, kw_only=True):
    """An update on a quantised base that has an everyday name of its own, such as QLoRA."""

    id: str
    quantization: str
    name: str
    phrase: str
    phrase_per_task: str
    meaning: str


class Update(Method, frozen=True, kw_only=True):
    """Which weights a stage trains."""

    phrase: str  # for people: "by training a small add-on beside it"
    phrase_per_task: str  # the same with one module for each of {tasks}
    trains: Literal["module", "all"]
    result: str  # what a run leaves: "a LoRA", "a bottleneck adapter", "a whole model"
    added: str = ""  # the line of an estimate for its own parameters: "adapters"
    size_key: str = ""  # the key that says how large the module is: rank
    merges: bool = False  # its result can be merged into the base
    why_not_merged: str = ""
    # Where its result can be loaded beside its base.
    serves: Annotated[tuple[str, ...], ListOf(of=Choice(values=SERVERS))] = SERVERS
    changes_at_start: bool = False  # a new module changes answers before any training
    peft_type: str = ""  # PEFT's name for it
    imports: str = ""  # what plain PEFT needs imported before it can load the result
    variants: tuple[Variant, ...] = ()

    @property
    def is_sent_to_vllm(self) -> bool:
        """Whether a running vLLM server takes its weights."""
        return "vllm" in self.serves

    @property
    def is_module(self) -> bool:
        """Whether it trains a module beside a frozen base."""
        return self.trains == "module"


class Scheme(Struct, frozen=True, kw_only=True):
    """An update with the quantization of its frozen base: full, lora, qlora, ..."""

    id: str
    update: str
    quantization: str | None
    name: str
    phrase: str
    phrase_per_task: str
    meaning: str


class Methods(Struct, frozen=True):
    """Every method whose file has no fault, and the faults of the others, with which every
    command ends.
    """

    objectives: Mapping[str, Objective]
    updates: Mapping[str, Update]
    faults: tuple[Fault, ...] = ()

    def check(self) -> None:
        """Raise InputError with the faults of all files."""
        refuse(self.faults)

    @property
    def schemes(self) -> dict[str, Scheme]:
        """Every scheme by its everyday name, each update followed by its variants."""
        found: dict[str, Scheme] = {}
        for update in self.updates.values():
            forms: list[tuple[str | None, Update | Variant]] = [(None, update)]
            forms += [(variant.quantization, variant) for variant in update.variants]
            for quantization, one in forms:
                scheme = Scheme(
                    id=one.id,
                    update=update.id,
                    quantization=quantization,
                    name=one.name,
                    phrase=one.phrase,
                    phrase_per_task=one.phrase_per_task,
                    meaning=one.meaning,
                )
                found.setdefault(one.id, scheme)
        return found

    def objective(self, name: str) -> Objective:
        """Raises InputError for an unknown name."""
        _check_name("objective", name, self.objectives)
        return self.objectives[name]

    def update(self, name: str) -> Update:
        """Raises InputError for an unknown name."""
        _check_name("update", name, self.updates)
        return self.updates[name]


def _check_name(axis: str, name: str, table: Mapping[str, Method]) -> None:
    if name not in table:
        what, allowed = f"unknown {axis} '{name}'", f"known: {', '.join(table)}"
        raise InputError(what, allowed, did_you_mean(name, table))
