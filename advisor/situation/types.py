"""Everything advice depends on, as one value."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.estimate.past_runs import NO_RUNS, PastRuns
from advisor.ground.types import AnswerSet, DataProfile, GpuSpec, Hardware, ModelShape, Source

PADDED_SHARE = 0.005  # Qwen2.5 7B has 152,064 rows for the 151,936 of Qwen2.5 0.5B


def may_share_vocabulary(student: ModelShape | None, teacher: ModelShape) -> bool:
    """Whether two models may have one tokenizer, by the size of their output matrices, which one
    family pads a little differently; the trainer compares the tokenizers themselves.
    """
    if student is None or "size" in (student.origin, teacher.origin):
        return True
    sizes = [size for size in (student.vocab_size, teacher.vocab_size) if size]
    return len(sizes) < 2 or max(sizes) - min(sizes) <= PADDED_SHARE * max(sizes)


TEACHER_BYTES = 0.55  # of a weight in 4 bits, with its constants


def teacher_fits(hardware: Hardware, teacher: ModelShape) -> bool:
    """Whether the teacher's weights alone fit into the memory of each GPU in 4 bits; True if the
    memory is not known, and on a CPU.
    """
    memories = [gpu.memory_total_bytes for gpu in hardware.gpus if gpu.memory_total_bytes]
    return not memories or TEACHER_BYTES * teacher.params < min(memories)


class ModelSuggestion(Struct, frozen=True, kw_only=True):
    """A model nobody asked for: what is suggested, and why."""

    model: str
    because: str
    source: str


class OutOfScope(Struct, frozen=True, kw_only=True):
    """A model or a device that this tool does not train, and where to go with it."""

    kind: str  # the value of the fact out_of_scope
    named: str  # "openai/whisper-large-v3"
    what: str  # "openai/whisper-large-v3 is a model for speech or sound, and ..."
    where: str
    instead: tuple[str, ...] = ()  # models that can be trained here in its place
    first: tuple[str, ...] = ()  # commands to paste
    sources: tuple[Source, ...] = ()
    is_model: bool = True  # False: a device


class Suggested(Struct, frozen=True, kw_only=True):
    """A model that could be suggested, with what goes with it."""

    shape: ModelShape
    suggestion: ModelSuggestion
    thinks: str | None = None  # as in Situation
    warnings: tuple[str, ...] = ()  # about this model with these data


class Situation(Struct, frozen=True, kw_only=True):
    """Everything advice depends on."""

    answers: AnswerSet
    hardware: Hardware
    data: DataProfile | None = None
    examples: DataProfile | None = None  # of requests and answers, beside a corpus
    reward_model: str | None = None  # the folder of one that is there already
    teacher: ModelShape | None = None  # a larger model that this one learns from
    teacher_name: str | None = None  # as a plan names it
    tasks: Mapping[str, DataProfile] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()  # how the data do not suit the task, with a row of them
    unsuited: str = ""  # why no plan is made of data that do not suit the task
    # Objective -> why the data are too few for it.
    shortages: Mapping[str, str] = field(default_factory=dict)
    model: ModelShape | None = None
    outside: OutOfScope | None = None  # the model or the device is not one for this tool
    # The argument of the chat template that switches off thoughts which no answer in the data has.
    thinks: str | None = None
    suggestion: ModelSuggestion | None = None
    suggested: tuple[Suggested, ...] = ()  # to choose from if none was named, largest first
    # In place of a named model that is of another kind than most tasks need.
    instead: ModelSuggestion | None = None
    encoder: Suggested | None = None  # what would be suggested if a small encoder is enough
    # Models that could take the place of this one, largest first.
    smaller: tuple[tuple[ModelShape, ModelSuggestion], ...] = ()
    free_gpus: str = ""  # who lends which GPU out for nothing, if there is none here
    rentals: tuple[GpuSpec, ...] = ()  # to choose from: no card was stated
    like: GpuSpec | None = None  # how fast a card is at least of which the memory alone is known
    cards: tuple[GpuSpec, ...] = ()  # that one could rent, cheapest first, for "what would fit"
    past: PastRuns = NO_RUNS  # of this machine and others, which correct estimates
    warnings: tuple[str, ...] = ()  # found while reading answers, data, hardware or a named model
    model_warnings: tuple[str, ...] = ()  # how the model, named or suggested, is trained
    unknown: tuple[str, ...] = ()


def with_suggested(situation: Situation, chosen: Suggested) -> Situation:
    """The situation with this model suggested, and with the smaller ones to fall back on."""
    return replace(
        situation,
        model=chosen.shape,
        suggestion=chosen.suggestion,
        thinks=chosen.thinks,
        model_warnings=chosen.warnings,
        smaller=tuple(
            (one.shape, one.suggestion)
            for one in situation.suggested
            if one.shape.params < chosen.shape.params
        ),
    )
