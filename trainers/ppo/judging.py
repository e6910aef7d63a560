"""The policy of a PPO stage before training and after it: one process does this alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import waiting
from advisor.record.stage import Check
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.job.process import EVALUATING, SAVING
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.records import forget_trained, without_handover
from trainers.keep.results import load_saved
from trainers.keep.resuming import evaluated
from trainers.ppo.heldout import HeldOutEvaluator
from trainers.ppo.roles import ADAPTERS, POLICY
from trainers.say.progress import AFTER, BEFORE, JUDGING_ALONE, Parts
from trainers.stage.judging import belongs, compared, conclude, found_trained
from trainers.step.trained_dtype import round_to_base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from advisor.record.run import StageResult
    from trainers.job.job import Job
    from trainers.job.types import Tokenizer
    from trainers.ppo.loaded import LoadedPPO
    from trainers.ppo.update import PPO
    from trainers.rows.conversation import Prompt


@dataclass
class Before:
    """The policy before training."""

    probe: Probe
    answer: Any  # to the probe
    evaluator: HeldOutEvaluator | None  # which has evaluated it


def probe_row(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Any:
    """The row for the checks on the saved result: a prompt of medium length and an end token."""
    chosen = sorted(prompts, key=lambda row: row.tokens)[len(prompts) // 2]
    ids = [*chosen.prompt_ids, tokenizer.eos_token_id]
    return SimpleNamespace(input_ids=ids, labels=ids, tokens=len(ids), learned=1)


def probe_of(loaded: LoadedPPO) -> Probe:
    """The row for the checks on the saved result."""
    row = probe_row(loaded.data.train, loaded.tokenizer)
    return Probe(row=row, pad_id=loaded.tokenizer.pad_token_id)


def evaluator_of(loaded: LoadedPPO, store: CheckpointStore) -> HeldOutEvaluator | None:
    """What compares the policy before and after; None if nothing is compared."""
    job, data = loaded.job, loaded.data
    if not job.judge:
        return None
    return HeldOutEvaluator(job, loaded.ppo, data.holdout, evaluated(store, data))


def measure_before(loaded: LoadedPPO, store: CheckpointStore, parts: Parts) -> Before:
    """Ask and evaluate the policy before its first update."""
    parts.begin(BEFORE)
    probe = probe_of(loaded)
    with loaded.ppo.roles.use(POLICY) as policy:
        answer = probe.answer(policy)
    loaded.job.enter(EVALUATING)
    evaluator = evaluator_of(loaded, store)
    if evaluator is not None:
        evaluator.evaluate_base()
    return Before(probe, answer, evaluator)


def evaluate_tuned(job: Job, evaluator: HeldOutEvaluator | None) -> None:
    """Evaluate the trained policy, as long as all roles are there."""
    job.enter(EVALUATING)
    if evaluator is not None:
        evaluator.evaluate_tuned()


def plain_policy(ppo: PPO) -> Any:
    """The policy alone, as anybody would load it."""
    policy = ppo.roles.only_policy()
    round_to_base(policy)
    policy.eval()
    return policy


def judge_saved(loaded: LoadedPPO, parts: Parts) -> None:
    """Check and compare what several processes have trained and saved, and write result.json; if
    they trained something else than the plan says now, remove their record.

    Raises TrainingFailed if the result is not the trained policy, or has no effect.
    """
    job, ppo = loaded.job, loaded.ppo
    found = found_trained(job)
    if found is None:
        return
    record, answer = found
    store = loaded.open_store(processes=record.processes)
    if not belongs(job, record, store):
        return
    before = measure_before(loaded, store, parts)
    parts.begin(AFTER, text=JUDGING_ALONE)
    with waiting("loading the saved result"):
        load_saved(ppo.roles.parts[POLICY].model, job.output, adapter=ADAPTERS[POLICY])
    evaluate_tuned(job, before.evaluator)
    job.enter(SAVING)
    policy = plain_policy(ppo)
    try:
        with waiting("checking the saved result"):
            checks = check_saved(
                job, policy, job.output, before.probe, before.answer,
                trained=answer, answered_in=record.answered_in,
            )  # fmt: skip
    except TrainingFailed:
        forget_trained(job.output)  # the next attempt saves the result again
        raise
    finish(job, without_handover(record), checks, before.evaluator, parts)
    forget_trained(job.output)


def finish(
    job: Job,
    trained: StageResult,
    checks: Sequence[Check],
    evaluator: HeldOutEvaluator | None,
    parts: Parts,
) -> None:
    """Say what was found, and write result.json.

    Args:
        job: The stage.
        trained: What the training said of it.
        checks: Of what was saved.
        evaluator: Has evaluated the policy before training and after it.
        parts: The clock of this process.
    """
    found = compared(evaluator)
    conclude(job, trained, [*checks, *found.checks, *trained.checks], found, parts)
