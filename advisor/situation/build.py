"""Answers -> Situation: the machine is probed, the data read, the model looked up.

The only place that joins them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advisor.estimate.types import RunSpec
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import Answers, DataProfile, GpuSpec, Hardware, ModelShape
from advisor.ground.units import format_count
from advisor.methods.composition import scheme_axes
from advisor.methods.families import DECODER, kind_of_type
from advisor.situation.chat_templates import lacks, needs_of, template_warnings
from advisor.situation.types import (
    ModelSuggestion,
    OutOfScope,
    Situation,
    may_share_vocabulary,
    teacher_fits,
)

# larger models are not suggested unasked: they train slowly and seldom pay for a first attempt
MAX_SUGGESTED_B = 8.5
START_SIGNALS = {
    "base_model_untuned": False,
    "instruct_model_start": True,
}  # what each says of whether the model follows instructions
WITH_ANSWERS = ("paired", "preference", "unpaired_feedback")  # kinds of data
CPU_SUGGESTED_B = 0.7  # what a processor trains in hours rather than days


def situation_of(
    answers: Answers,
    *,
    probed: Hardware | None = None,
    online: bool = False,
    base: Path | None = None,
) -> Situation:
    """The situation of these answers.

    Args:
        answers: What was stated.
        probed: The machine, where it has been probed already (the wizard shows it first).
        online: Whether an unknown hub id may be looked up on the model hub.
        base: Folder of the answers file; paths that do not exist in the working folder are tried
            there.
    """
    warnings: list[str] = []
    unknown: list[str] = []
    hardware = hardware_of(answers, warnings, probed=probed)
    data, tasks, answers = _data(answers, warnings, base)
    examples = _examples(answers, base)
    reward_model = _reward_model(answers, base)
    outside = outside_of(answers, hardware, warnings)
    # What is not trained here needs no size, and a suggestion in its place would be another answer.
    answered = answers if outside is None else _without_model(answers)
    model = _model(answered, warnings, unknown, online=online)
    teacher_name = answers.value("teacher_model")
    teacher_name = None if teacher_name is None else _found(str(teacher_name), base)
    teacher = None
    if teacher_name is not None:
        notes: list[str] = []
        teacher = _shape(teacher_name, None, notes, online=online)
        counted = ": memory and time are counted as if it were as large as the student"
        warnings.extend(note.replace("; say --model-params-b", counted) for note in notes)
    taught = [profile for profile in (data, examples, *tasks.values()) if profile is not None]
    taught = [profile for profile in taught if profile.kind in WITH_ANSWERS]
    needs = needs_of(taught)
    suggestion, encoder = None, None
    profiles = [data] if data is not None else list(tasks.values())
    if model is None and outside is None and not answers.value("model"):
        encoder = _encoder(answers, profiles, warnings)
        suggestion = _suggested(answers, hardware, needs)
        if suggestion is not None:
            model = _shape(suggestion.model, None, warnings, online=False)
    if teacher is not None:
        warnings.extend(_about_teacher(model, teacher, hardware))
    thinks = _thoughts(model, data, tasks, warnings)
    if model is not None and taught and kind_of_type(model.architecture) == DECODER:
        other = _with_template(answers, model, needs)
        mapping = answers.value("data_mapping")
        warnings.extend(template_warnings(model.id, taught, mapping, other))
    instead = (
        _suggested(answers, hardware, needs)
        if suggestion is None and model is not None and kind_of_type(model.architecture) != DECODER
        else None
    )
    return Situation(
        answers=answers, hardware=hardware, data=data, examples=examples,
        shortages=_shortages(answers, data, examples, tasks), reward_model=reward_model,
        teacher=teacher, teacher_name=teacher_name,
        tasks=tasks,
        model=model, outside=outside, thinks=thinks, suggestion=suggestion, instead=instead,
        encoder=encoder,
        smaller=_smaller(answers, hardware, model), cards=_cards(hardware),
        free_gpus=_free_gpus(hardware),
        warnings=tuple(dict.fromkeys(warnings)), unknown=tuple(unknown),
    )  # fmt: skip


def _about_teacher(
    model: ModelShape | None, teacher: ModelShape, hardware: Hardware
) -> Iterable[str]:
    """Why a model cannot be learned from as it was stated, each in a sentence."""
    if model is not None and model.id == teacher.id:
        yield f"{teacher.id} is the model that is trained: it has nothing to teach itself"
        return
    if model is not None and not may_share_vocabulary(model, teacher):
        yield (
            f"{teacher.id} has {teacher.vocab_size:,} tokens and {model.id} {model.vocab_size:,}:"
            " it can write examples for it, and not correct it word by word; that takes a model of"
            " the same family"
        )
    if model is not None and teacher.params < model.params:
        yield (
            f"{teacher.id} has {format_count(teacher.params)} parameters and {model.id}"
            f" {format_count(model.params)}: a teacher is usually the larger one"
        )
    if not teacher_fits(hardware, teacher):
        yield (
            f"{teacher.id} does not fit into the GPU's memory even in 4 bits: it can write"
            " examples elsewhere, and not correct the model word by word here"
        )


def outside_of(
    answers: Answers, hardware: Hardware, warnings: list[str] | None = None
) -> OutOfScope | None:
    """The model or the device that this tool does not train, if one was named."""
    name = answers.value("model")
    if name is not None:
        from advisor.situation.scope import mentioned_beside, out_of_scope

        found = out_of_scope(str(name), answers.value("task"))
        if found is not None:
            return found
        if warnings is not None and (said := mentioned_beside(str(name))):
            warnings.append(said)
    if hardware.not_supported is None:
        return None
    from advisor.situation.scope import hardware_out_of_scope

    return hardware_out_of_scope(hardware)


def _without_model(answers: Answers) -> Answers:
    left_out = ("model", "model_params_b")
    return Answers(
        known={name: answer for name, answer in answers.known.items() if name not in left_out}
    )


def hardware_of(
    answers: Answers, warnings: list[str], *, probed: Hardware | None = None
) -> Hardware:
    """The stated hardware, or this machine where none was stated."""
    name, memory_gib, count = (
        answers.value("gpu"),
        answers.value("gpu_memory_gib"),
        answers.value("gpus"),
    )
    if name is None and memory_gib is None and count is None:
        return probed if probed is not None else _probe()
    from advisor.probe import stated_hardware

    origin = answers.known["gpu"].origin if "gpu" in answers.known else "flag"
    hardware, notes = stated_hardware(
        name, count=count, memory_gib=memory_gib, from_flag=origin in ("flag", "asked")
    )
    warnings.extend(notes)
    return hardware


def _probe() -> Hardware:
    from advisor.probe import probe

    return probe()


def _cards(hardware: Hardware) -> tuple[GpuSpec, ...]:
    """Cards one could rent, cheapest first: needed only where hardware can rule something out."""
    if hardware.kind == "unknown":
        return ()
    from advisor.probe.catalogue import cheapest_cards

    return tuple(cheapest_cards(0))


def _free_gpus(hardware: Hardware) -> str:
    if hardware.kind != "cpu":
        return ""
    from advisor.probe.catalogue import free_gpus

    return free_gpus()


def _data(
    answers: Answers, warnings: list[str], base: Path | None
) -> tuple[DataProfile | None, Mapping[str, DataProfile], Answers]:
    stated_tasks: Mapping[str, str] = answers.value("tasks") or {}
    path = answers.value("data_path")
    if path and stated_tasks:
        raise InputError(
            "both one data file and one file per task are given",
            allowed="--data FILE, or --tasks NAME=FILE for each task",
        )
    if not path and not stated_tasks:
        return None, {}, answers
    from advisor.data import profile

    faults: list[Fault] = []
    profiles: dict[str, DataProfile] = {}
    for name, file in stated_tasks.items() if stated_tasks else [("", str(path))]:
        try:
            profiles[name] = profile(_found(file, base), mapping=answers.value("data_mapping"))
        except InputError as error:
            faults.extend(error.faults)
    if faults:
        raise InputError(faults=faults)
    for name, found in profiles.items():
        kind, rows = answers.value("data_kind"), answers.value("data_rows")
        if kind is not None and kind != found.kind:
            warnings.append(
                f"data: stated as {kind}, but {found.path} holds {found.kind}; the file counts"
            )
        if rows is not None and not name and rows != found.rows:
            warnings.append(
                f"data: stated as {rows:,} rows, but {found.path} holds {found.rows:,}; the file"
                " counts"
            )
        warnings.extend(
            f"data{f' of {name}' if name else ''}: {finding.text}"
            for finding in found.findings
            if finding.severity != "note"
        )
    if stated_tasks:
        return None, profiles, answers
    return profiles[""], {}, answers


def _thoughts(
    model: ModelShape | None,
    data: DataProfile | None,
    tasks: Mapping[str, DataProfile],
    warnings: list[str],
) -> str | None:
    """The argument of the chat template that switches the model's thoughts off, if it thinks before
    it answers and no answer in the data holds thoughts; said as a warning.
    """
    from advisor.data.thoughts import ALWAYS, missing_text

    profiles = [data] if data is not None else list(tasks.values())
    taught = [profile for profile in profiles if profile.kind in WITH_ANSWERS]
    if model is None or not taught:
        return None
    if any(profile.measures.get("rows_with_thoughts") for profile in taught):
        return None
    switch = model.thinks
    if switch is None and model.origin in ("folder", "hub"):
        from advisor.data.measure.tokenizer import switch_at_hand

        switch = switch_at_hand(model.id)
    if switch == ALWAYS:
        warnings.append(f"{model.id}: {missing_text(switch)}")
        return None
    if switch is not None:
        warnings.append(
            f"{model.id} thinks before it answers, and no answer in the data holds thoughts: the"
            f" plan switches them off (template: {{{switch}: false}}), for training and for use"
        )
    return switch


def _examples(answers: Answers, base: Path | None) -> DataProfile | None:
    """The examples beside a corpus."""
    path = answers.value("data_examples")
    return examples_of(_found(str(path), base)) if path else None


def examples_of(path: str) -> DataProfile:
    """A file of examples measured. Raises InputError where it holds something else."""
    from advisor.data import profile

    found = profile(path)
    if found.kind not in ("paired", "preference"):
        raise InputError(
            f"{path}: holds {found.kind}, examples of requests and answers are expected",
            hint="documents go into --data, examples into --examples",
        )
    return found


def _shortages(
    answers: Answers,
    data: DataProfile | None,
    examples: DataProfile | None,
    tasks: Mapping[str, DataProfile],
) -> Mapping[str, str]:
    """What is said of too few data, by objective: of the file, the smallest of the tasks' files, or
    what was stated.
    """
    name = min(tasks, key=lambda task: tasks[task].rows, default="") if data is None else ""
    profile = tasks[name] if name else data
    rows, tokens = (
        (answers.value("data_rows"), answers.value("data_tokens"))
        if profile is None
        else _amount_of(profile)
    )
    if rows is None and tokens is None:
        return {}
    from advisor.data.measure.data_requirements import shortages

    found = shortages(rows=rows, tokens=tokens)
    if (
        answers.value("data_kind") if profile is None else profile.kind
    ) == "raw_text":  # learned from examples beside the documents
        found.pop("sft", None)
        rows, tokens = (None, None) if examples is None else _amount_of(examples)
        found |= {
            objective: text
            for objective, text in shortages(rows=rows, tokens=tokens).items()
            if objective == "sft"
        }
    return (
        {objective: f"data of {name}: {text}" for objective, text in found.items()}
        if name
        else found
    )


def _amount_of(profile: DataProfile) -> tuple[int, int | None]:
    return profile.rows, None if profile.tokens is None else profile.tokens.total


def _reward_model(answers: Answers, base: Path | None) -> str | None:
    """The folder of the stated reward model. Raises InputError where it holds none."""
    path = answers.value("reward_model")
    return model_folder(_found(str(path), base)) if path else None


def model_folder(path: str) -> str:
    """The path of a folder that holds a model. Raises InputError where it holds none."""
    if not any(
        (Path(path).expanduser() / name).is_file()
        for name in ("adapter_config.json", "config.json")
    ):
        raise InputError(
            f"{path}: holds no model",
            allowed=(
                "the folder of a reward model: a stage with objective rm leaves one, --reward-model"
                " names it"
            ),
        )
    return path


def _found(file: str, base: Path | None) -> str:
    """The path as given, or beside the answers file where it exists only there."""
    if base is not None and not Path(file).exists() and (base / file).exists():
        return str(base / file)
    return file


def _model(
    answers: Answers, warnings: list[str], unknown: list[str], *, online: bool
) -> ModelShape | None:
    name, params_b = answers.value("model"), answers.value("model_params_b")
    if name is None and params_b is None:
        return None
    if name is not None:
        name = _one_of_several(str(name), answers, warnings, unknown, online=online)
    shape = _shape(
        str(name) if name is not None else f"a model of {params_b:g}B",
        params_b,
        warnings,
        online=online,
    )
    if shape is None or shape.origin == "size":
        unknown.append("model")
    for signal, instruct in START_SIGNALS.items():
        if shape is not None and shape.instruct is (not instruct) and signal in answers.signals:
            name_says = (
                "follows instructions already"
                if shape.instruct
                else "does not follow instructions yet"
            )
            warnings.append(
                f"model: by its name {shape.id} {name_says}; you said otherwise, and that counts"
            )
    return shape


def _one_of_several(
    text: str, answers: Answers, warnings: list[str], unknown: list[str], *, online: bool
) -> str:
    """The name itself, or where it names several models the one that stands for them all."""
    from advisor.situation.several_models import choose, names_in

    names = names_in(text)
    if len(names) < 2:
        return text
    unknown.append("model")
    task, params_b = str(answers.value("task", "other")), answers.value("model_params_b")
    chosen, assumed = choose(names, task, params_b, online=online)
    warnings.append(assumed)
    return chosen


def _shape(
    name: str, params_b: float | None, warnings: list[str], *, online: bool
) -> ModelShape | None:
    from advisor.situation.shapes import is_instruct, model_shape

    shape, notes = model_shape(name, params_b=params_b, online=online)
    warnings.extend(notes)
    return shape if shape is None else replace(shape, instruct=is_instruct(name))


def _encoder(
    answers: Answers, profiles: Sequence[DataProfile], warnings: list[str]
) -> tuple[ModelShape, ModelSuggestion] | None:
    """The encoder to suggest where texts are only sorted into classes: of many languages where the
    data are not English. The rules decide whether it is taken.
    """
    if answers.value("task") != "classification":
        return None
    from advisor.situation.suggested_encoder import suggest_encoder

    suggestion = suggest_encoder(profiles)
    shape = _shape(suggestion.model, None, warnings, online=False)
    return None if shape is None else (shape, suggestion)


def _smaller(
    answers: Answers, hardware: Hardware, model: ModelShape | None
) -> tuple[tuple[ModelShape, ModelSuggestion], ...]:
    """Models to fall back on, looked up only where a limit is known that could rule this one
    out.
    """
    limited = (
        hardware.kind != "unknown"
        or answers.value("budget_usd") is not None
        or answers.value("budget_hours") is not None
    )
    if model is None or not limited:
        return ()
    from advisor.situation.shapes import smaller_models

    return tuple(smaller_models(str(answers.value("task", "other")), model.params))


def _with_template(answers: Answers, model: ModelShape, needs: Collection[str]) -> str | None:
    """A suggested model of about this one's size whose chat template writes what the data need."""
    if not needs:
        return None
    from advisor.situation.shapes import suggest_model

    task = str(answers.value("task", "other"))
    found = suggest_model(task, max(model.params / 1e9 * 1.1, CPU_SUGGESTED_B), needs=needs)
    return None if lacks(found.model, needs) else found.model


def _suggested(
    answers: Answers, hardware: Hardware, needs: Collection[str] = ()
) -> ModelSuggestion | None:
    """A model for the task that the hardware can train: with LoRA, or with QLoRA where money is
    short.

    Args:
        needs: What the data need of its chat template.
    """
    from advisor.estimate import estimate
    from advisor.situation.shapes import shape_from_size, suggest_model

    task = str(answers.value("task", "other"))
    if hardware.kind == "unknown" or hardware.device_memory_bytes is None:
        return suggest_model(task, None, needs=needs)
    if hardware.kind == "cpu":
        return suggest_model(task, CPU_SUGGESTED_B, needs=needs)
    # On an Apple GPU 4 bit is for a base that somebody named (evidence/four-bit-last-on-apple).
    in_4_bit = answers.value("budget") == "low" and hardware.kind != "mps"
    update, quantization = scheme_axes("qlora" if in_4_bit else "lora")
    spec = RunSpec(
        update=update,
        quantization=quantization,
        rank=32,
        micro_batch_size=1,
        gradient_checkpointing=True,
    )
    for size_b in (8.2, 4.0, 1.7, 0.6, 0.36, 0.135):
        if (
            estimate(
                spec,
                shape_from_size(int(size_b * 1e9), f"{size_b}B"),
                hardware,
                tokens_total=None,
                rows_total=None,
            ).fits
            == "fits"
        ):
            return suggest_model(task, min(MAX_SUGGESTED_B, size_b * 1.02), needs=needs)
    return suggest_model(task, 0.135, needs=needs)
