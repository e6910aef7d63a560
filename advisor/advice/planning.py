"""Candidate -> Plan with a comment beside every chosen value, or what is missing before there can
be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from advisor.advice.facts import device
from advisor.advice.search.micro_batches import batch_of_task
from advisor.advice.search.rows import task_settings
from advisor.advice.search.settings import BATCH, StageCase, is_seq2seq, needs_examples
from advisor.advice.search.strategies import strategy_comment
from advisor.advice.types import Advice, Candidate, Chosen
from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile
from advisor.methods import methods
from advisor.plan.comments import stage_notes
from advisor.plan.model import Comments, Launch, Origin, Plan, PlanData, Stage, Task
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import inside_sentence
from advisor.situation.answers import answers_document
from advisor.situation.types import Situation

STAGE_FIELDS = {field.name for field in fields(Stage)} - {"options"}
DEVICES = {"cuda": "cuda", "rocm": "rocm", "mps": "mps", "cpu": "cpu", "unknown": "cuda"}
NO_CLASSES = (
    "data with a text and its class in each row (for words that are marked: transformers'"
    " examples/pytorch/token-classification/run_ner.py)"
)
OF_LAUNCH = ("sharding", "offload")  # settings of all stages together
SAVES = "all that a crash costs; more where saving would take over 5 % of the time"


def missing_for_plan(advice: Advice, candidate: Candidate, ruleset: Ruleset) -> list[str]:
    """What has to be known before a candidate can run, as keys of an answers file.

    Empty: it can.
    """
    situation = advice.situation
    missing = []
    if not situation.answers.value("tasks"):
        if candidate.composition.per_task:
            missing.append("tasks")
        elif not situation.answers.value("data_path"):
            missing.append("data.path")
    model = situation.model
    if model is None or model.origin == "size":
        missing.append("model")
    profiles = _profiles(situation)
    if lacks_scores(situation, candidate.composition.chain):
        missing.append("reward_model")
    for index, objective in enumerate(candidate.composition.chain):
        if learns_from_teacher(objective) and situation.teacher_name is None:
            missing.append("teacher_model")
        found = methods().objective(objective)
        trains_on = found.trains_on
        # A model that scores answers needs the requests alone, whatever the data say to them.
        scored = found.needs_reward and (
            "preference" in trains_on
            or situation.reward_model is not None
            or not needs_scores(objective, candidate.composition.chain[:index])
        )
        suited = (*trains_on, *found.also_reads) if scored else trains_on
        if not trains_on or not profiles or any(profile.kind in suited for profile in profiles):
            continue
        if needs_examples(situation, objective):
            if situation.examples is None:
                missing.append("data.examples")
        else:
            missing.append(f"data of kind {' or '.join(trains_on)} for the stage {objective}")
    if (
        candidate.composition.encoder
        and not is_seq2seq(model)
        and profiles
        and not all(profile.format == "classification" for profile in profiles)
    ):
        missing.append(NO_CLASSES)
    if situation.unsuited and candidate.composition.chain:
        missing.append(situation.unsuited)
    return missing


def needs_scores(objective: str, before: Sequence[str]) -> bool:
    """Whether a stage scores its own answers, with no reward model trained before it."""
    scored = any(methods().objective(earlier).scores for earlier in before)
    return methods().objective(objective).needs_reward and not scored


def lacks_scores(situation: Situation, chain: Sequence[str]) -> bool:
    """Whether a stage scores its own answers, and nothing there is can score them: no reward model,
    and no requests that each come with what an answer is checked against.
    """
    profiles = _profiles(situation)
    kinds = {profile.kind for profile in profiles} or {situation.answers.value("data_kind")}
    checked = kinds == {"prompts_with_verifier"} and not without_answers(profiles)
    scores = any(needs_scores(chain[index], chain[:index]) for index in range(len(chain)))
    return scores and situation.reward_model is None and not checked


def without_answers(profiles: Sequence[DataProfile]) -> bool:
    """Whether the data are requests alone, which nobody answered."""
    return any(profile.format == "requests" for profile in profiles)


def learns_from_teacher(objective: str) -> bool:
    """Whether a stage learns from another model."""
    return "teacher" in methods().objective(objective).keys


def _profiles(situation: Situation) -> list[DataProfile]:
    return [situation.data] if situation.data is not None else list(situation.tasks.values())


def make_plan(
    advice: Advice, candidate: Candidate, ruleset: Ruleset, *, name: str = "finetune"
) -> tuple[Plan, Comments]:
    """The launch file of a candidate and the comments beside its values.

    `missing_for_plan` has to be empty.
    """
    situation = advice.situation
    assert situation.model is not None
    comments: dict[tuple[str | int, ...], str] = {}
    stages: list[Stage] = []
    for index, stage in enumerate(candidate.stages):
        values: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for key, chosen in stage.settings.items():
            if key in OF_LAUNCH:
                continue
            (values if key in STAGE_FIELDS else options)[key] = chosen.value
            comments[("stages", index, key)] = comment_of(chosen)
        if candidate.composition.encoder:
            options["head"], comments[("stages", index, "head")] = (
                (
                    "seq2seq",
                    "a sequence-to-sequence model: it reads the input, and writes the output",
                )
                if is_seq2seq(situation.model)
                else ("classes", "a classification head in place of the language head")
            )
        if needs_examples(situation, stage.objective) and situation.examples is not None:
            values["data"] = situation.examples.path
            comments[("stages", index, "data")] = (
                "examples of requests and answers; the stage before reads the documents"
            )
        before = [earlier.objective for earlier in candidate.stages[:index]]
        if situation.reward_model is not None and needs_scores(stage.objective, before):
            options["reward_model"] = situation.reward_model
            comments[("stages", index, "reward_model")] = "the model that scores answers, as stated"
        if learns_from_teacher(stage.objective) and situation.teacher_name is not None:
            options["teacher"] = situation.teacher_name
            comments[("stages", index, "teacher")] = "the larger model to learn from, as stated"
        writers = [
            earlier.name for earlier in stages if not methods().objective(earlier.objective).scores
        ]
        if before[-1:] == ["rm"] and writers:
            values["start_from"] = writers[-1]
            comments[("stages", index, "start_from")] = (
                "the stage before is a reward model, which writes no answers"
            )
        if "learning_rate" not in values:
            learned = methods().objective(stage.objective)
            method = methods().update(stage.update) if learned.learns_texts else learned
            raise InputError(
                f"no rule sets a learning_rate for {stage.objective} with"
                f" {stage.update}, and the file has no default",
                f"defaults: {{learning_rate: {'1.0e-4' if learned.learns_texts else '5.0e-6'}}}",
                where=method.at,
            )
        comments[("stages", index, "save_minutes")] = SAVES
        again = before.count(stage.objective)
        stage_name = f"{stage.objective}{again + 1 if again else ''}"
        stages.append(
            Stage(
                name=stage_name,
                objective=stage.objective,
                update=stage.update,
                quantization=stage.quantization,
                options=options,
                **values,
            )
        )
    first = candidate.stages[0]  # all stages share the GPUs in one way
    sharding, offload = (first.settings.get(key) for key in OF_LAUNCH)
    kind = DEVICES[situation.hardware.kind]
    comments[("launch", "device")] = (
        situation.hardware.gpus[0].name
        if situation.hardware.gpus
        else (
            "no GPU: trains on the processor"
            if device(situation.hardware) == "cpu"
            else "hardware not stated"
        )
    )
    if sharding is not None:
        comments[("launch", "processes")] = "one a GPU"
        comments[("launch", "strategy")] = strategy_comment(candidate)
        if first.machines > 1:
            comments[("launch", "nodes")] = "`advise run` is started on each of them"
    if offload is not None:
        comments[("launch", "offload")] = comment_of(offload)
    if situation.suggestion is not None:
        comments[("model",)] = f"suggested: {situation.suggestion.because}"
    template: dict[str, Any] = {}
    if situation.thinks is not None and _answers_are_taught(candidate):
        template = {situation.thinks: False}
        comments[("template", situation.thinks)] = (
            "the model thinks, and the answers in the data hold no thoughts"
        )
    plan = Plan(
        name=name,
        model=situation.model.id,
        template=template,
        stages=tuple(stages),
        launch=Launch(
            device=kind,  # type: ignore[arg-type]
            processes=first.gpus // first.machines,
            nodes=first.machines,
            strategy=None if sharding is None else sharding.value,
            offload=offload is not None,
        ),
        origin=Origin(
            composition=str(candidate.composition),
            answers=answers_document(situation.answers),
            hardware=hardware_line(situation),
            rules=f"{'+'.join(advice.layers)} {advice.rules_digest}",
        ),
        **_data(situation),
    )
    plan = _with_overrides(plan, advice, candidate, ruleset, comments)
    for index, stage in enumerate(candidate.stages):
        comments[("stages", index)] = stage_notes(
            plan,
            index,
            steps=None if plan.tasks else stage.told_steps,
            instruct=situation.model.instruct is True,
        )
    return plan, comments


def _with_overrides(
    plan: Plan,
    advice: Advice,
    candidate: Candidate,
    ruleset: Ruleset,
    comments: dict[tuple[str | int, ...], str],
) -> Plan:
    """The plan with what follows from each task's own rows, where that is not what follows from
    the largest task's.

    An override goes to every stage of a task, so that a chain has none.
    """
    if not plan.tasks or len(plan.stages) > 1:
        return plan
    stage, devices = plan.stages[0], plan.launch.world_size
    machine = advice.situation.hardware
    used = replace(machine, gpus=machine.gpus[:devices])  # of several GPUs perhaps one
    situation = replace(advice.situation, hardware=used)
    case = StageCase(ruleset, situation, advice.facts, candidate.composition, stage.objective)
    own = {id(profile): read for profile, read in task_settings(case)}
    tasks = []
    for number, task in enumerate(plan.tasks):
        read = own.get(id(advice.situation.tasks.get(task.name)))
        chosen: dict[str, Chosen] = {}
        if read is not None:
            chosen = dict(read.settings)
            batch = chosen.pop(BATCH)
            per_step = int(batch.value)
            if not stage.packing:
                smallest = min(case.micro_batches)
                chosen |= batch_of_task(batch, stage.micro_batch_size, devices, smallest=smallest)
                per_step = chosen["micro_batch_size"].value * chosen["grad_accum"].value * devices
            chosen = read.with_steps(chosen, per_step)
        overrides = {
            key: one.value for key, one in chosen.items() if one.value != getattr(stage, key)
        }
        for key in overrides:
            comments[("tasks", number, "overrides", key)] = comment_of(chosen[key])
        tasks.append(replace(task, overrides=overrides))
    return replace(plan, tasks=tuple(tasks))


def _answers_are_taught(candidate: Candidate) -> bool:
    """Whether some stage of a model that writes learns from the answers in the data; in
    reinforcement alone a model writes its own, and its thoughts help it.
    """
    return not candidate.composition.encoder and any(
        not methods().objective(objective).needs_reward for objective in candidate.composition.chain
    )


def _data(situation: Situation) -> Mapping[str, Any]:
    tasks: Mapping[str, str] = situation.answers.value("tasks") or {}
    if tasks:
        mapping = situation.answers.value("data_mapping")
        return {
            "tasks": tuple(
                Task(name=name, data=_plan_data(path, situation.tasks.get(name), mapping))
                for name, path in tasks.items()
            )
        }
    return {
        "data": _plan_data(
            str(situation.answers.value("data_path")),
            situation.data,
            situation.answers.value("data_mapping"),
        )
    }


def _plan_data(
    path: str, profile: DataProfile | None, mapping: Mapping[str, str] | None
) -> PlanData:
    return PlanData(
        path=path,
        format=profile.format if profile else None,
        mapping=_plan_mapping(profile, mapping),
    )


def _plan_mapping(
    profile: DataProfile | None, stated: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Role -> column, where it was stated or guessed: a run reads what the person has seen."""
    if profile is not None and profile.confidence in ("guessed", "stated"):
        return dict(profile.mapping if profile.confidence == "guessed" else stated or {})
    return dict(stated) if stated and profile is None else None


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
