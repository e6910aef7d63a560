"""Candidate -> Plan with a comment beside every chosen value, or what is missing for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from advisor.advice.facts import answers_are_checked, data_profiles, device, needs_scores
from advisor.advice.search.micro_batches import batch_of_task
from advisor.advice.search.rows import RowsRead, task_settings
from advisor.advice.search.settings import BATCH, StageCase, is_seq2seq, needs_examples
from advisor.advice.search.strategies import strategy_comment
from advisor.advice.types import OF_LAUNCH, Advice, Candidate, Chosen, FittedStage, values_of
from advisor.estimate.run import STAGE_KEYS
from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile
from advisor.methods import objective, update
from advisor.methods.composition import Composition
from advisor.plan.comments import stage_notes
from advisor.plan.model import Comments, Launch, Origin, Place, Plan, PlanData, Stage, Task
from advisor.ruleset.facts import load_facts
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import inside_sentence, joined, value_words
from advisor.situation.answers import answers_document
from advisor.situation.types import Situation

NO_CLASSES = (
    "data with a text and its class in each row (for words that are marked: transformers'"
    " examples/pytorch/token-classification/run_ner.py)"
)
HEADS = {
    True: Chosen(
        value="seq2seq",
        because="a sequence-to-sequence model: it reads the input, and writes the output",
    ),
    False: Chosen(value="classes", because="a classification head in place of the language head"),
}
SAVES = "all that a crash costs; more where saving would take over 5 % of the time"

ENGINE = "engine"  # what a plan lacks that another engine trains

Written = dict[Place, str]  # path of a value -> the comment beside it


# --------------------------------------------------------------------------- what is missing


def missing_for_plan(advice: Advice, candidate: Candidate) -> list[str]:
    """Keys of an answers file that have to be known before a candidate can run."""
    situation, composition = advice.situation, candidate.composition
    answers, model, profiles = situation.answers, situation.model, data_profiles(situation)
    if candidate.engine is not None or situation.hardware.not_supported is not None:
        return [ENGINE]
    found = {
        "tasks": composition.per_task and not answers.value("tasks"),
        "data.path": not (
            composition.per_task or answers.value("tasks") or answers.value("data_path")
        ),
        "model": model is None or model.origin == "size",
        "reward_model": lacks_scores(situation, composition.chain),
    }
    missing = [key for key, is_missing in found.items() if is_missing]
    for index, name in enumerate(composition.chain):
        missing += _missing_for_stage(situation, name, composition.chain[:index])
    classes = all(profile.format == "classification" for profile in profiles)
    if composition.encoder and not is_seq2seq(model) and not classes:
        missing.append(NO_CLASSES)
    if situation.unsuited and composition.chain:
        missing.append(situation.unsuited)
    return missing


def _missing_for_stage(situation: Situation, name: str, before: Sequence[str]) -> Iterator[str]:
    if _has_teacher(name) and situation.teacher_name is None:
        yield "teacher_model"
    method, kinds = objective(name), {profile.kind for profile in data_profiles(situation)}
    trains_on = method.trains_on
    # A model that scores answers needs the requests alone, whatever the data say to them.
    scored = method.needs_reward and (
        "preference" in trains_on
        or situation.reward_model is not None
        or not needs_scores(name, before)
    )
    suited = (*trains_on, *method.also_reads) if scored else trains_on
    if not trains_on or not kinds or not kinds.isdisjoint(suited):
        return
    if not needs_examples(situation, name):
        wanted = joined((value_words(load_facts()["data_kind"], one) for one in trains_on), "or")
        yield f"a data file with {wanted} for the stage {name}"
    elif situation.examples is None:
        yield "data.examples"


def lacks_scores(situation: Situation, chain: Sequence[str]) -> bool:
    """Whether a stage scores its own answers, and nothing there is can score them."""
    scores = any(needs_scores(name, chain[:index]) for index, name in enumerate(chain))
    return scores and situation.reward_model is None and not answers_are_checked(situation)


def _has_teacher(name: str) -> bool:
    return "teacher" in objective(name).keys


# --------------------------------------------------------------------------- the plan


def make_plan(advice: Advice, candidate: Candidate, ruleset: Ruleset) -> tuple[Plan, Comments]:
    """The launch file of a candidate that lacks nothing, and the comments beside its values."""
    situation, comments = advice.situation, Written()
    assert situation.model is not None
    stages: list[Stage] = []
    for fitted in candidate.stages:
        stages.append(_stage(situation, candidate.composition, fitted, stages, comments))
    launch, template = _launch(situation, candidate, comments), {}
    if situation.suggestion is not None:
        comments["model",] = f"suggested: {situation.suggestion.because}"
    if situation.thinks is not None and _learns_answers(candidate):
        template[situation.thinks] = False
        comments["template", situation.thinks] = (
            "the model thinks, and the answers in the data hold no thoughts"
        )
    plan = Plan(
        model=situation.model.id,
        template=template,
        stages=tuple(stages),
        launch=launch,
        origin=Origin(
            composition=str(candidate.composition),
            answers=answers_document(situation.answers),
            hardware=hardware_line(situation),
            rules=f"{'+'.join(advice.layers)} {advice.rules_digest}",
        ),
        **_data(situation),
    )
    # An override goes to every stage of a task, so that a chain has none.
    if plan.tasks and len(stages) == 1:
        plan = _with_overrides(plan, advice, candidate, ruleset, comments)
    for index, fitted in enumerate(candidate.stages):
        steps, instruct = None if plan.tasks else fitted.told_steps, situation.model.instruct
        comments["stages", index] = stage_notes(plan, index, steps=steps, instruct=instruct is True)
    return plan, comments


def _stage(
    situation: Situation,
    composition: Composition,
    fitted: FittedStage,
    before: Sequence[Stage],
    comments: Written,
) -> Stage:
    stage, name = fitted.stage, fitted.stage.objective
    beside = _beside_settings(situation, composition, name, before)
    if "learning_rate" not in fitted.reasons:
        method = objective(name)
        rate = "1.0e-4" if method.learns_texts else "5.0e-6"
        raise InputError(
            f"no rule sets a learning_rate for {name} with {stage.update}, and the"
            " file has no default",
            f"defaults: {{learning_rate: {rate}}}",
            where=update(stage.update).at if method.learns_texts else method.at,
        )
    for key, one in {**fitted.reasons, **beside}.items():
        if key not in OF_LAUNCH:
            comments["stages", len(before), key] = comment_of(one)
    comments["stages", len(before), "save_minutes"] = SAVES
    again = sum(earlier.objective == name for earlier in before)
    values = values_of(beside)
    options = {key: value for key, value in values.items() if key not in STAGE_KEYS}
    return replace(
        stage,
        name=f"{name}{again + 1 if again else ''}",
        options={**stage.options, **options},
        **{key: value for key, value in values.items() if key in STAGE_KEYS},
    )


def _beside_settings(
    situation: Situation, composition: Composition, name: str, before: Sequence[Stage]
) -> dict[str, Chosen]:
    """Keys of a stage that follow from what was stated and from the stages before it."""
    found, earlier = {}, [stage.objective for stage in before]
    if composition.encoder:
        found["head"] = HEADS[is_seq2seq(situation.model)]
    if needs_examples(situation, name) and situation.examples is not None:
        documents = situation.data is not None and situation.data.kind == "raw_text"
        read = "documents" if documents else "answers that were judged"
        because = f"examples of requests and answers; another stage reads the {read}"
        found["data"] = Chosen(value=situation.examples.path, because=because)
    if situation.reward_model is not None and needs_scores(name, earlier):
        because = "the model that scores answers, as stated"
        found["reward_model"] = Chosen(value=situation.reward_model, because=because)
    if _has_teacher(name) and situation.teacher_name is not None:
        because = "the larger model to learn from, as stated"
        found["teacher"] = Chosen(value=situation.teacher_name, because=because)
    writers = [stage.name for stage in before if not objective(stage.objective).scores]
    if earlier[-1:] == ["rm"] and writers:
        because = "the stage before is a reward model, which writes no answers"
        found["start_from"] = Chosen(value=writers[-1], because=because)
    return found


def _launch(situation: Situation, candidate: Candidate, comments: Written) -> Launch:
    """How the stages are started, with the comments beside it: all share the GPUs in one way."""
    first, hardware = candidate.stages[0], situation.hardware
    sharding, offload = (first.reasons.get(key) for key in OF_LAUNCH)
    on_cpu = device(hardware) == "cpu"
    none = "no GPU: trains on the processor" if on_cpu else "hardware not stated"
    comments["launch", "device"] = hardware.gpus[0].name if hardware.gpus else none
    if sharding is not None:
        comments["launch", "processes"] = "one a GPU"
        comments["launch", "strategy"] = strategy_comment(candidate)
        if first.machines > 1:
            comments["launch", "nodes"] = "`advise run` is started on each of them"
    if offload is not None:
        comments["launch", "offload"] = comment_of(offload)
    return Launch(
        device="cuda" if hardware.kind == "unknown" else hardware.kind,  # type: ignore[arg-type]
        processes=first.gpus // first.machines,
        nodes=first.machines,
        strategy=None if sharding is None else sharding.value,
        offload=offload is not None,
    )


def _with_overrides(
    plan: Plan, advice: Advice, candidate: Candidate, ruleset: Ruleset, comments: Written
) -> Plan:
    stage, devices, machine = plan.stages[0], plan.launch.world_size, advice.situation.hardware
    used = replace(machine, gpus=machine.gpus[:devices])  # of several GPUs perhaps one
    situation = replace(advice.situation, hardware=used)
    case = StageCase(ruleset, situation, advice.facts, candidate.composition, stage.objective)
    own = {id(profile): read for profile, read in task_settings(case)}
    tasks = []
    for number, task in enumerate(plan.tasks):
        read = own.get(id(advice.situation.tasks.get(task.name)))
        chosen = {} if read is None else _settings_of_task(case, stage, read, devices)
        changed = {key: one for key, one in chosen.items() if one.value != getattr(stage, key)}
        for key, one in changed.items():
            comments["tasks", number, "overrides", key] = comment_of(one)
        tasks.append(replace(task, overrides={key: one.value for key, one in changed.items()}))
    return replace(plan, tasks=tuple(tasks))


def _settings_of_task(
    case: StageCase, stage: Stage, read: RowsRead, devices: int
) -> dict[str, Chosen]:
    chosen = dict(read.settings)
    batch = chosen.pop(BATCH)
    if stage.packing:
        return read.with_steps(chosen, int(batch.value))
    micro, smallest = stage.micro_batch_size, min(case.micro_batches)
    chosen |= batch_of_task(batch, micro, devices, smallest=smallest)
    per_step = chosen["micro_batch_size"].value * chosen["grad_accum"].value * devices
    return read.with_steps(chosen, per_step)


def _learns_answers(candidate: Candidate) -> bool:
    """Whether a stage of a model that writes learns from the answers in the data."""
    composition = candidate.composition
    learns = any(not objective(name).needs_reward for name in composition.chain)
    return learns and not composition.encoder


def _data(situation: Situation) -> Mapping[str, Any]:
    answers = situation.answers
    stated = answers.value("data_mapping")
    if tasks := answers.value("tasks"):
        return {
            "tasks": tuple(
                Task(name=name, data=_plan_data(path, situation.tasks.get(name), stated))
                for name, path in tasks.items()
            )
        }
    return {"data": _plan_data(str(answers.value("data_path") or ""), situation.data, stated)}


def _plan_data(
    path: str, profile: DataProfile | None, stated: Mapping[str, str] | None
) -> PlanData:
    """A data file with the roles of its columns, if they were stated or guessed."""
    if profile is None:
        return PlanData(path=path, mapping=dict(stated) if stated else None)
    mapping = None
    if profile.confidence in ("guessed", "stated"):
        mapping = dict(profile.mapping if profile.confidence == "guessed" else stated or {})
    return PlanData(path=path, format=profile.format, mapping=mapping)


def comment_of(chosen: Chosen) -> str:
    """'why (rule id)' for the line of a plan."""
    because = inside_sentence(chosen.because).rstrip(".")
    return f"{because} ({chosen.rule})" if chosen.rule else because


def hardware_line(situation: Situation) -> str:
    """The machine in a few words, for the plan's origin."""
    hardware = situation.hardware
    if hardware.gpus:
        of = f" in {hardware.machines} machines" if hardware.machines > 1 else ""
        return f"{len(hardware.gpus)} x {hardware.gpus[0].name}{of} ({hardware.origin})"
    return (
        "unknown"
        if hardware.kind == "unknown"
        else f"CPU, {hardware.cpu_cores or '?'} cores ({hardware.origin})"
    )
