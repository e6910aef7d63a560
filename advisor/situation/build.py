"""Answers -> Situation: the machine is probed, the data read, the model looked up.

The only place that joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

import advisor.data
from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.types import AnswerSet, DataProfile, GpuSpec, Hardware, ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import DECODER, kind_of_type
from advisor.probe import probe, stated_hardware
from advisor.probe.catalogue import cheapest_cards, free_gpus, is_marketplace, slowest_of
from advisor.situation.data import ReadData, Reader, own_tokenizer, path_beside, read_data
from advisor.situation.names import (
    about_reading,
    hardware_out_of_scope,
    model_meant,
    named_shape,
    original_of,
    out_of_scope,
)
from advisor.situation.past_runs import read_past_runs
from advisor.situation.suggestions import (
    needs_of,
    smaller_models,
    suggest_encoder,
    suggest_model,
    template_fit,
)
from advisor.situation.types import (
    ModelSuggestion,
    Situation,
    Suggested,
    may_share_vocabulary,
    teacher_fits,
    with_suggested,
)

# larger models are not suggested unasked: they train slowly and seldom pay for a first attempt
MAX_SUGGESTED_B = 8.5
# Whether the model follows instructions, by what was stated.
START_SIGNALS = {"base_model_untuned": False, "instruct_model_start": True}
WITH_ANSWERS = ("paired", "preference", "unpaired_feedback")  # kinds of data
PACKED = ("gptq", "awq")  # formats of a checkpoint that need packages of their own


def situation_of(
    answers: AnswerSet,
    *,
    probed: Hardware | None = None,
    online: bool = False,
    base: Path | None = None,
    read: Reader | None = None,
) -> Situation:
    """The situation of these answers.

    Args:
        answers: What was stated.
        probed: The machine, if it has been probed already (the wizard shows it first).
        online: Whether an unknown hub id may be looked up on the model hub.
        base: Folder of the answers file; paths that do not exist in the working folder are tried
            there.
        read: Measures a data file, if not as advisor.data does.

    Raises InputError with every fault of hardware, data and reward model.
    """
    faults: list[Fault] = []
    answers, renamed = _with_models(answers)
    with _collect(faults):
        hardware, warnings = hardware_of(answers, probed=probed)
        hardware, cards, rentals = _cards(answers, hardware, warnings)
    with _collect(faults):
        stated = read_data(answers, base, read)
    with _collect(faults):
        path = _path(answers, "data_examples", base)
        examples = examples_of(path, own_tokenizer(answers, base)) if path else None
        if path:
            _refuse_beside(stated, answers, path)
    with _collect(faults):
        path = _path(answers, "reward_model", base)
        reward_model = model_folder(path) if path else None
    refuse(faults)
    name = str(answers.value("model", ""))
    outside = out_of_scope(name, answers.value("task")) or hardware_out_of_scope(hardware)
    # A model of another kind needs no size, and a suggestion in its place would be another answer.
    named = [answers.value(fact_id) for fact_id in ("model", "model_params_b")]
    model, about_model, unknown = (
        _model(answers, online=online)
        if (outside is None or not outside.is_model) and named != [None, None]
        else (None, [], [])
    )
    teacher_name = _path(answers, "teacher_model", base)
    teacher, about_teacher = (
        named_shape(teacher_name, online=online) if teacher_name else (None, [])
    )
    counted = ": memory and time are counted as if it were as large as the student"
    about_teacher = [note.replace("; say --model-params-b", counted) for note in about_teacher]
    past, about_runs = read_past_runs()
    situation = Situation(
        answers=answers, hardware=hardware, data=stated.data, examples=examples, tasks=stated.tasks,
        misfits=stated.misfits, unsuited=stated.unsuited, reward_model=reward_model,
        teacher=teacher, teacher_name=teacher_name, model=model, outside=outside, past=past,
        cards=cards, rentals=rentals, like=slowest_of(hardware),
        free_gpus=free_gpus() if hardware.kind == "cpu" else "", unknown=tuple(unknown),
    )  # fmt: skip
    needs = needs_of(_taught(situation))
    warnings += [*stated.warnings, *renamed, *about_model, *about_teacher]
    if model is not None:
        thinks, about_data, lacking = _suits_data(situation, model)
        is_decoder = kind_of_type(model.architecture) == DECODER
        situation = replace(
            situation,
            thinks=thinks,
            model_warnings=tuple(about_data),
            unsuited=stated.unsuited or lacking,
            instead=None if is_decoder else _suggestion(answers, MAX_SUGGESTED_B, needs),
            smaller=_smaller(situation, model, needs),
        )
    situation = replace(
        situation,
        shortages=_shortages(situation),
        warnings=tuple(dict.fromkeys((*warnings, *about_runs))),
    )
    if model is not None or outside is not None or answers.value("model"):
        return situation
    suggested = tuple(_suggestible(situation, needs))
    situation = replace(situation, suggested=suggested, encoder=_encoder(situation))
    return with_suggested(situation, suggested[0]) if suggested else situation


@contextmanager
def _collect(faults: list[Fault]) -> Iterator[None]:
    """Keep what is wrong in one part, so that the others are looked at too."""
    try:
        yield
    except InputError as error:
        faults.extend(error.faults)


def _with_models(answers: AnswerSet) -> tuple[AnswerSet, list[str]]:
    """The answers with each model by its id that was named as people say it, and what is said."""
    known, notes = dict(answers.known), []
    for fact_id, flag in (("model", "--model"), ("teacher_model", "--teacher-model")):
        name = str(answers.value(fact_id, ""))
        params_b = answers.value("model_params_b") if fact_id == "model" else None
        if (meant := model_meant(name, params_b)) not in (None, name):
            known[fact_id] = replace(known[fact_id], value=meant)
            notes += about_reading(name, meant, flag)
    return replace(answers, known=known) if notes else answers, notes


def _path(answers: AnswerSet, fact_id: str, base: Path | None) -> str | None:
    """A stated path or model, also beside the answers file; None if it is not stated."""
    stated = answers.value(fact_id)
    return None if stated is None else path_beside(str(stated), base)


# --------------------------------------------------------------------------- hardware


def hardware_of(
    answers: AnswerSet, *, probed: Hardware | None = None
) -> tuple[Hardware, list[str]]:
    """The stated hardware, or this machine if none was stated; and what is said of it.

    Raises InputError for hardware that is not known, or cannot be divided into so many machines.
    """
    name, memory_gib, count, nodes = (
        answers.value(fact_id) for fact_id in ("gpu", "gpu_memory_gib", "gpus", "nodes")
    )
    notes: Sequence[str] = ()
    if name is None and memory_gib is None and count is None:
        hardware = probed if probed is not None else probe()
        is_each = True
    else:
        origin = answers.known["gpu"].origin if "gpu" in answers.known else "flag"
        hardware, notes = stated_hardware(
            name, count=count, memory_gib=memory_gib, from_flag=origin in ("flag", "asked")
        )
        is_each = count is None and len(hardware.gpus) == 1
    if nodes is None:
        return hardware, [*notes]
    if is_each:  # so many machines like this one
        hardware = replace(hardware, gpus=hardware.gpus * nodes)
    gpus = len(hardware.gpus)
    if nodes > 1 and (hardware.kind in ("cpu", "mps") or (gpus and gpus % nodes)):
        held = f"{gpus} GPUs" if gpus and hardware.kind != "mps" else "what trains by itself"
        raise InputError(
            f"{nodes} machines cannot share {held}",
            where=answers.where.get("nodes", "--nodes"),
            allowed="as many GPUs in each machine, such as --gpus 16 --nodes 2",
            hint="--gpus counts those of all machines together",
        )
    return replace(hardware, machines=nodes) if nodes > 1 else hardware, [*notes]


TO_RENT = (
    "no GPU was stated, and none is here: a limit in dollars is taken for renting one; --gpu none"
    " trains on this machine's CPU"
)


def _cards(
    answers: AnswerSet, hardware: Hardware, warnings: list[str]
) -> tuple[Hardware, tuple[GpuSpec, ...], tuple[GpuSpec, ...]]:
    """The hardware, the cards that would hold what it does not, and those to choose from where no
    card was stated. Whose data may not leave the house is told no price of strangers.
    """
    usd, name = answers.value("budget_usd"), answers.value("gpu")
    is_stated = any(answers.value(fact) is not None for fact in ("gpu_memory_gib", "gpus", "nodes"))
    is_open = hardware.origin == "unknown" or (hardware.kind == "cpu" and name is None)
    if is_open and usd and name is None and not is_stated:
        hardware = Hardware(kind="unknown", origin="unknown")
        warnings.append(TO_RENT)
    cards = cheapest_cards(0)
    if answers.value("priority") == "privacy":
        cards = tuple(card for card in cards if not is_marketplace(card))
        gpus = (
            replace(gpu, spec=replace(gpu.spec, price_usd_per_h=None, price_note=""))
            if gpu.spec is not None and is_marketplace(gpu.spec)
            else gpu
            for gpu in hardware.gpus
        )
        hardware = replace(hardware, gpus=tuple(gpus))
    rentals = cards if is_open and not is_stated else ()
    return hardware, () if hardware.kind == "unknown" else cards, rentals


# --------------------------------------------------------------------------- data


def examples_of(path: str, count_tokens: Callable[[str], int] | None = None) -> DataProfile:
    """A file of examples measured. Raises InputError if it holds something else."""
    found = advisor.data.profile(path, count_tokens=count_tokens)
    if found.kind not in ("paired", "preference"):
        raise InputError(
            f"holds {found.kind}, examples of requests and answers are expected",
            where=path,
            hint="documents go into --data, examples into --examples",
        )
    return found


def _refuse_beside(stated: ReadData, answers: AnswerSet, path: str) -> None:
    """Raise InputError for examples beside data with which no stage would read them."""
    kind = answers.value("data_kind") if stated.data is None else stated.data.kind
    if stated.tasks or kind in ("paired", "prompts_with_verifier", "none"):
        raise InputError(
            "examples go beside documents or judged answers, and the data are neither",
            where=f"--examples {path}",
            hint="put all requests with their answers into one file, for --data",
        )


def model_folder(path: str) -> str:
    """The path of a folder that holds a model. Raises InputError if it holds none."""
    folder = Path(path).expanduser()
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise InputError(
            "holds no model",
            where=path,
            allowed=(
                "the folder of a reward model: a stage with objective rm leaves one, --reward-model"
                " names it"
            ),
        )
    return path


def _shortages(situation: Situation) -> Mapping[str, str]:
    """What is said of too few data, by objective: of the file, the smallest of the tasks' files, or
    what was stated.
    """
    tasks, answers, profile = situation.tasks, situation.answers, situation.data
    name = min(tasks, key=lambda task: tasks[task].rows, default="") if profile is None else ""
    profile = tasks[name] if name else profile
    if profile is None:
        kind, rows, tokens = (answers.value(f"data_{key}") for key in ("kind", "rows", "tokens"))
    else:
        kind, rows, tokens = profile.kind, profile.rows, _tokens(profile)
    if rows is None and tokens is None:
        return {}
    found = advisor.data.shortages(rows=rows, tokens=tokens)
    if kind == "raw_text":
        found.pop("sft", None)
    if kind == "raw_text" and (examples := situation.examples) is not None:
        # Which learns from examples beside the documents.
        of_examples = advisor.data.shortages(rows=examples.rows, tokens=_tokens(examples))
        found |= {"sft": of_examples["sft"]} if "sft" in of_examples else {}
    about = f"data of {name}: " if name else ""
    return {objective: f"{about}{text}" for objective, text in found.items()}


def _tokens(profile: DataProfile) -> int | None:
    return None if profile.tokens is None else profile.tokens.total


def _taught(situation: Situation) -> list[DataProfile]:
    profiles = (situation.data, situation.examples, *situation.tasks.values())
    return [found for found in profiles if found is not None and found.kind in WITH_ANSWERS]


# --------------------------------------------------------------------------- the model


def _model(answers: AnswerSet, *, online: bool) -> tuple[ModelShape | None, list[str], list[str]]:
    """The shape of the stated model, warnings about it, and what stays unknown."""
    stated, params_b = answers.value("model"), answers.value("model_params_b")
    name = f"a model of {params_b:g}B" if stated is None else str(stated)
    shape, warnings = named_shape(name, params_b=params_b, online=online)
    unknown = ["model"] if shape is None or shape.origin == "size" else []
    if shape is None:
        return None, warnings, unknown
    if shape.stored in PACKED and (original := original_of(shape.id)):
        warnings.append(
            f"model: {shape.id} holds rounded weights; {original}, which it was made from,"
            " trains without further packages: --model takes it"
        )
    for signal, instruct in START_SIGNALS.items():
        if shape.instruct is (not instruct) and signal in answers.signals:
            follows = "follows" if shape.instruct else "does not follow"
            when = "already" if shape.instruct else "yet"
            warnings.append(
                f"model: by its name {shape.id} {follows} instructions {when}; you said otherwise,"
                " and that counts"
            )
    return shape, warnings, unknown


def _suits_data(situation: Situation, model: ModelShape) -> tuple[str | None, list[str], str]:
    """How a model suits teacher and data: (the argument of its chat template that switches its
    thoughts off, if no answer in the data holds thoughts; warnings; what a plan lacks).
    """
    thinks, about_thoughts = _thoughts(situation, model)
    warnings = [*_about_teacher(situation, model), *about_thoughts]
    taught = _taught(situation)
    if not taught or kind_of_type(model.architecture) != DECODER:
        return thinks, warnings, ""
    mapping = situation.answers.value("data_mapping")
    about_template, lacking = template_fit(model.id, taught, mapping)
    return thinks, [*warnings, *about_template], lacking


def _about_teacher(situation: Situation, model: ModelShape) -> Iterable[str]:
    """Why a model cannot be learned from as it was stated, each in a sentence."""
    teacher = situation.teacher
    if teacher is None:
        return
    if model.id == teacher.id:
        yield f"{teacher.id} is the model that is trained: it has nothing to teach itself"
        return
    if not may_share_vocabulary(model, teacher):
        yield (
            f"{teacher.id} has {teacher.vocab_size:,} tokens and {model.id} {model.vocab_size:,}:"
            " it can write examples for it, and not correct it word by word; that takes a model of"
            " the same family"
        )
    if teacher.params < model.params:
        yield (
            f"{teacher.id} has {format_count(teacher.params)} parameters and {model.id}"
            f" {format_count(model.params)}: a teacher is usually the larger one"
        )
    if not teacher_fits(situation.hardware, teacher):
        yield (
            f"{teacher.id} does not fit into the GPU's memory even in 4 bits: it can write"
            " examples elsewhere, and not correct the model word by word here"
        )


def _thoughts(situation: Situation, model: ModelShape) -> tuple[str | None, list[str]]:
    """The argument of the chat template that switches the model's thoughts off, if it thinks before
    it answers and no answer in the data holds thoughts; and a warning that says so.
    """
    profiles = situation.tasks.values() if situation.data is None else [situation.data]
    taught = [profile for profile in profiles if profile.kind in WITH_ANSWERS]
    if not taught or any(profile.measures.get("rows_with_thoughts") for profile in taught):
        return None, []
    switch = model.thinks
    if switch is None and model.origin in ("folder", "hub"):
        switch = advisor.data.switch_at_hand(model.id)
    if switch is None:
        return None, []
    if switch == advisor.data.ALWAYS:
        return None, [f"{model.id}: {advisor.data.missing_text(switch)}"]
    return switch, [
        f"{model.id} thinks before it answers, and no answer in the data holds thoughts: the"
        f" plan switches them off (template: {{{switch}: false}}), for training and for use"
    ]


# --------------------------------------------------------------------------- suggestions


def _smaller(
    situation: Situation, model: ModelShape, needs: Collection[str]
) -> tuple[tuple[ModelShape, ModelSuggestion], ...]:
    """Models to fall back on, looked up only if a limit is known that could rule this one out."""
    answers = situation.answers
    limits = [answers.value(fact_id) for fact_id in ("budget_usd", "budget_hours")]
    if situation.hardware.kind == "unknown" and limits == [None, None]:
        return ()
    task, untuned = str(answers.value("task", "other")), _starts_untuned(answers)
    return tuple(smaller_models(task, model.params, needs=needs, untuned=untuned))


def _suggestion(
    answers: AnswerSet, max_params_b: float | None, needs: Collection[str]
) -> ModelSuggestion:
    task, untuned = str(answers.value("task", "other")), _starts_untuned(answers)
    return suggest_model(task, max_params_b, needs=needs, untuned=untuned)


def _starts_untuned(answers: AnswerSet) -> bool:
    """Whether the start was stated to be a plain text model, and nothing stated speaks against."""
    stated = {instruct for name, instruct in START_SIGNALS.items() if name in answers.signals}
    stated |= {not so for name, so in START_SIGNALS.items() if answers.value(name) is False}
    return stated == {False}


def _suggestible(situation: Situation, needs: Collection[str]) -> Iterator[Suggested]:
    """The models to suggest for the task, largest first. Which of them is taken is decided with
    the method, by what fits (advisor/advice/case.py); if the memory is not known, the first is.
    """
    known = situation.hardware.device_memory_bytes is not None
    limit_b, seen = MAX_SUGGESTED_B if known else None, set[str]()
    while True:
        suggestion = _suggestion(situation.answers, limit_b, needs)
        one = None if suggestion.model in seen else _suggested(situation, suggestion)
        if one is not None:
            yield one
        if one is None or not known:
            return
        seen.add(suggestion.model)
        limit_b = 0.99 * one.shape.params / 1e9


def _encoder(situation: Situation) -> Suggested | None:
    """The encoder to suggest if texts are only sorted into classes: one of many languages if the
    data are not English. The rules decide whether it is taken.
    """
    if situation.answers.value("task") != "classification":
        return None
    profiles = [situation.data] if situation.data is not None else list(situation.tasks.values())
    return _suggested(situation, suggest_encoder(profiles))


def _suggested(situation: Situation, suggestion: ModelSuggestion) -> Suggested | None:
    """A model to suggest with what is said of it with these data; None if its size is unknown."""
    shape, warnings = named_shape(suggestion.model)
    if shape is None:
        return None
    thinks, about_data, _ = _suits_data(situation, shape)
    return Suggested(
        shape=shape,
        suggestion=suggestion,
        thinks=thinks,
        warnings=tuple(dict.fromkeys((*warnings, *about_data))),
    )
