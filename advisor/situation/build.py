"""Answers -> Situation: the machine is probed, the data read, the model looked up.

The only place that joins them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from advisor.estimate.past.runs import PastRuns
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import Answers, DataProfile, GpuSpec, Hardware, ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import DECODER, kind_of_type
from advisor.situation.chat_templates import lacks, needs_of, template_fit
from advisor.situation.data import found_beside, read_data
from advisor.situation.types import (
    ModelSuggestion,
    OutOfScope,
    Situation,
    Suggested,
    may_share_vocabulary,
    suggesting,
    teacher_fits,
)

# larger models are not suggested unasked: they train slowly and seldom pay for a first attempt
MAX_SUGGESTED_B = 8.5
SMALLEST_WITH_TEMPLATE_B = 0.7  # in place of smaller models, of which few have such a template
START_SIGNALS = {
    "base_model_untuned": False,
    "instruct_model_start": True,
}  # what each says of whether the model follows instructions
WITH_ANSWERS = ("paired", "preference", "unpaired_feedback")  # kinds of data
PACKED = ("gptq", "awq")  # formats of a checkpoint that need packages of their own


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

    Raises InputError with every fault of hardware, data and reward model.
    """
    warnings: list[str] = []
    unknown: list[str] = []
    faults: list[Fault] = []
    with _collected(faults):
        hardware = hardware_of(answers, warnings, probed=probed)
    with _collected(faults):
        read = read_data(answers, base)
    with _collected(faults):
        examples = _examples(answers, base)
    with _collected(faults):
        reward_model = _reward_model(answers, base)
    if faults:
        raise InputError(faults=faults)
    data, tasks, answers = read.data, read.tasks, read.answers
    warnings = [*warnings, *read.warnings]
    outside = outside_of(answers, hardware, warnings)
    # What is not trained here needs no size, and a suggestion in its place would be another answer.
    answered = answers if outside is None else _without_model(answers)
    model = _model(answered, warnings, unknown, online=online)
    teacher_name = answers.value("teacher_model")
    teacher_name = None if teacher_name is None else found_beside(str(teacher_name), base)
    teacher = None
    if teacher_name is not None:
        notes: list[str] = []
        teacher = _shape(teacher_name, None, notes, online=online)
        counted = ": memory and time are counted as if it were as large as the student"
        warnings.extend(note.replace("; say --model-params-b", counted) for note in notes)
    taught = [profile for profile in (data, examples, *tasks.values()) if profile is not None]
    taught = [profile for profile in taught if profile.kind in WITH_ANSWERS]
    needs = needs_of(taught)
    if teacher is not None and model is not None:
        warnings.extend(_about_teacher(model, teacher, hardware))
    thinks = None if model is None else _thoughts(model, data, tasks, warnings)
    unsuited = read.unsuited
    if model is not None:
        told, lacking = _about_template(answers, model, taught, needs)
        warnings.extend(told)
        unsuited = unsuited or lacking
    instead = (
        _suggestion(answers, MAX_SUGGESTED_B, needs)
        if model is not None and kind_of_type(model.architecture) != DECODER
        else None
    )
    situation = Situation(
        answers=answers, hardware=hardware, data=data, examples=examples,
        shortages=_shortages(answers, data, examples, tasks), reward_model=reward_model,
        teacher=teacher, teacher_name=teacher_name,
        tasks=tasks, misfits=read.misfits, unsuited=unsuited,
        model=model, outside=outside, thinks=thinks, instead=instead,
        smaller=_smaller(answers, hardware, model, needs), cards=_cards(hardware),
        free_gpus=_free_gpus(hardware), past=_past(warnings),
        warnings=tuple(dict.fromkeys(warnings)), unknown=tuple(unknown),
    )  # fmt: skip
    if model is not None or outside is not None or answers.value("model"):
        return situation
    suggested = tuple(_suggestible(situation, taught, needs))
    situation = replace(situation, suggested=suggested, encoder=_encoder(situation))
    return suggesting(situation, suggested[0]) if suggested else situation


@contextmanager
def _collected(faults: list[Fault]) -> Iterator[None]:
    """Keep what is wrong in one part, so that the others are looked at too."""
    try:
        yield
    except InputError as error:
        faults.extend(error.faults)


def _about_teacher(model: ModelShape, teacher: ModelShape, hardware: Hardware) -> Iterable[str]:
    """Why a model cannot be learned from as it was stated, each in a sentence."""
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
        if warnings is not None and (said := mentioned_beside(str(name), answers.value("task"))):
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
    name, memory_gib, count, nodes = (
        answers.value("gpu"),
        answers.value("gpu_memory_gib"),
        answers.value("gpus"),
        answers.value("nodes"),
    )
    if name is None and memory_gib is None and count is None:
        here = probed if probed is not None else _probe()
        return here if nodes is None else several_machines(here, nodes, answers)
    from advisor.probe import stated_hardware

    origin = answers.known["gpu"].origin if "gpu" in answers.known else "flag"
    hardware, notes = stated_hardware(
        name, count=count, memory_gib=memory_gib, from_flag=origin in ("flag", "asked")
    )
    warnings.extend(notes)
    if nodes is None:
        return hardware
    is_each = count is None and len(hardware.gpus) == 1  # one GPU in each machine
    found = several_machines if is_each else on_machines
    return found(hardware, nodes, answers)


def several_machines(machine: Hardware, nodes: int, answers: Answers) -> Hardware:
    """So many machines like this one."""
    return on_machines(replace(machine, gpus=machine.gpus * nodes), nodes, answers)


def on_machines(hardware: Hardware, nodes: int, answers: Answers) -> Hardware:
    """The hardware with its GPUs in so many machines, each with as many.

    Raises InputError if they cannot be.
    """
    if nodes < 2:
        return hardware
    gpus, at = len(hardware.gpus), answers.where.get("nodes", "--nodes")
    if hardware.kind in ("cpu", "mps") or (gpus and gpus % nodes):
        held = f"{gpus} GPUs" if gpus and hardware.kind != "mps" else "what trains by itself"
        raise InputError(
            f"{nodes} machines cannot share {held}",
            where=at,
            allowed="as many GPUs in each machine, such as --gpus 16 --nodes 2",
            hint="--gpus counts those of all machines together",
        )
    return replace(hardware, machines=nodes)


def _past(warnings: list[str]) -> PastRuns:
    """What past runs of this machine measured; what of their file cannot be read is a warning."""
    from advisor.situation.past_runs import read_past_runs

    found, notes = read_past_runs()
    warnings.extend(notes)
    return found


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


def _thoughts(
    model: ModelShape | None,
    data: DataProfile | None,
    tasks: Mapping[str, DataProfile],
    warnings: list[str],
) -> str | None:
    """The argument of the chat template that switches the model's thoughts off, if it thinks before
    it answers and no answer in the data holds thoughts; said as a warning.
    """
    from advisor.data.templates.messages import ALWAYS, missing_text

    profiles = [data] if data is not None else list(tasks.values())
    taught = [profile for profile in profiles if profile.kind in WITH_ANSWERS]
    if model is None or not taught:
        return None
    if any(profile.measures.get("rows_with_thoughts") for profile in taught):
        return None
    switch = model.thinks
    if switch is None and model.origin in ("folder", "hub"):
        from advisor.data.templates.tokenizer import switch_at_hand

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
    return examples_of(found_beside(str(path), base)) if path else None


def examples_of(path: str) -> DataProfile:
    """A file of examples measured. Raises InputError where it holds something else."""
    from advisor.data import profile

    found = profile(path)
    if found.kind not in ("paired", "preference"):
        raise InputError(
            f"holds {found.kind}, examples of requests and answers are expected",
            where=path,
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
    from advisor.data.amounts import shortages

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
    return model_folder(found_beside(str(path), base)) if path else None


def model_folder(path: str) -> str:
    """The path of a folder that holds a model. Raises InputError where it holds none."""
    if not any(
        (Path(path).expanduser() / name).is_file()
        for name in ("adapter_config.json", "config.json")
    ):
        raise InputError(
            "holds no model",
            where=path,
            allowed=(
                "the folder of a reward model: a stage with objective rm leaves one, --reward-model"
                " names it"
            ),
        )
    return path


def _model(
    answers: Answers, warnings: list[str], unknown: list[str], *, online: bool
) -> ModelShape | None:
    name, params_b = answers.value("model"), answers.value("model_params_b")
    if name is None and params_b is None:
        return None
    if name is not None:
        name = _one_of_several(str(name), answers, warnings, unknown)
    shape = _shape(
        str(name) if name is not None else f"a model of {params_b:g}B",
        params_b,
        warnings,
        online=online,
    )
    if shape is None or shape.origin == "size":
        unknown.append("model")
    if shape is not None and shape.stored in PACKED:
        from advisor.situation.scope import original_of

        if original := original_of(shape.id):
            warnings.append(
                f"model: {shape.id} holds rounded weights; {original}, which it was made from,"
                " trains without further packages: --model takes it"
            )
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


def _one_of_several(text: str, answers: Answers, warnings: list[str], unknown: list[str]) -> str:
    """The name itself; of several models in one field the first that this tool trains."""
    from advisor.situation.models import names_in
    from advisor.situation.scope import out_of_scope

    names = names_in(text)
    if len(names) < 2:
        return text
    unknown.append("model")
    task = answers.value("task")
    chosen = next((name for name in names if out_of_scope(name, task) is None), names[0])
    warnings.append(
        f"model: {len(names)} models are named, and an answer is about one: here {chosen}; ask"
        " again with another name alone"
    )
    return chosen


def _shape(
    name: str, params_b: float | None, warnings: list[str], *, online: bool
) -> ModelShape | None:
    from advisor.situation.model_names import is_instruct
    from advisor.situation.models import model_shape

    shape, notes = model_shape(name, params_b=params_b, online=online)
    warnings.extend(notes)
    if shape is None:
        warnings.extend(_may_mean(name))
        return None
    return replace(shape, instruct=is_instruct(name))


def _may_mean(name: str) -> list[str]:
    """A warning that names models which a name fits that is none by itself ("mistral")."""
    from advisor.situation.model_choice import near_models
    from advisor.situation.scope import out_of_scope

    near = () if out_of_scope(name) is not None else near_models(name, most=3)[0]
    ids = ", ".join(model.id for model in near)
    return [f"model: '{name}' may mean {ids}: name one of them"] if near else []


def _encoder(situation: Situation) -> Suggested | None:
    """The encoder to suggest where texts are only sorted into classes: of many languages where the
    data are not English. The rules decide whether it is taken.
    """
    if situation.answers.value("task") != "classification":
        return None
    from advisor.situation.suggestions import suggest_encoder

    profiles = [situation.data] if situation.data is not None else list(situation.tasks.values())
    return _suggested(situation, suggest_encoder(profiles))


def _smaller(
    answers: Answers, hardware: Hardware, model: ModelShape | None, needs: Collection[str]
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
    from advisor.situation.suggestions import smaller_models

    task, untuned = str(answers.value("task", "other")), _starts_untuned(answers)
    return tuple(smaller_models(task, model.params, needs=needs, untuned=untuned))


def _about_template(
    answers: Answers, model: ModelShape, taught: Sequence[DataProfile], needs: Collection[str]
) -> tuple[Sequence[str], str]:
    """What the model's chat template cannot hold of the data, with a model that can, and what a
    plan lacks for it.
    """
    if not taught or kind_of_type(model.architecture) != DECODER:
        return (), ""
    other = _with_template(answers, model, needs)
    return template_fit(model.id, taught, answers.value("data_mapping"), other)


def _with_template(answers: Answers, model: ModelShape, needs: Collection[str]) -> str | None:
    """A suggested model of about this one's size whose chat template writes what the data need."""
    if not needs:
        return None
    found = _suggestion(answers, max(model.params / 1e9 * 1.1, SMALLEST_WITH_TEMPLATE_B), needs)
    return None if lacks(found.model, needs) else found.model


def _suggestion(
    answers: Answers, max_params_b: float | None, needs: Collection[str]
) -> ModelSuggestion:
    """A model for the task.

    Args:
        needs: What the data need of its chat template.
    """
    from advisor.situation.suggestions import suggest_model

    task, untuned = str(answers.value("task", "other")), _starts_untuned(answers)
    return suggest_model(task, max_params_b, needs=needs, untuned=untuned)


def _starts_untuned(answers: Answers) -> bool:
    """Whether the start was stated to be a plain text model, and nothing stated speaks against."""
    said = {instruct for signal, instruct in START_SIGNALS.items() if signal in answers.signals}
    said |= {
        not instruct for signal, instruct in START_SIGNALS.items() if answers.value(signal) is False
    }
    return said == {False}


def _suggestible(
    situation: Situation, taught: Sequence[DataProfile], needs: Collection[str]
) -> Iterator[Suggested]:
    """The models to suggest for the task, largest first. Which of them is taken is decided with
    the method, by what fits (advisor/advice/case.py); where the memory is not known, the first is.
    """
    known = situation.hardware.device_memory_bytes is not None
    limit_b, seen = MAX_SUGGESTED_B if known else None, set[str]()
    while True:
        suggestion = _suggestion(situation.answers, limit_b, needs)
        one = None if suggestion.model in seen else _suggested(situation, suggestion, taught, needs)
        if one is None:
            return
        yield one
        if not known:
            return
        seen.add(suggestion.model)
        limit_b = 0.99 * one.shape.params / 1e9


def _suggested(
    situation: Situation,
    suggestion: ModelSuggestion,
    taught: Sequence[DataProfile] = (),
    needs: Collection[str] = (),
) -> Suggested | None:
    """A model to suggest with what is said of it with these data; None if its size is unknown."""
    warnings: list[str] = []
    shape = _shape(suggestion.model, None, warnings, online=False)
    if shape is None:
        return None
    if situation.teacher is not None:
        warnings.extend(_about_teacher(shape, situation.teacher, situation.hardware))
    thinks = _thoughts(shape, situation.data, situation.tasks, warnings)
    warnings.extend(_about_template(situation.answers, shape, taught, needs)[0])
    return Suggested(
        shape=shape, suggestion=suggestion, thinks=thinks, warnings=tuple(dict.fromkeys(warnings))
    )
