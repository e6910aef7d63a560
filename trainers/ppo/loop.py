"""The loop of PPO: rollouts, rewards, advantages, update, and again.

A step of the plan (max_steps, save_steps, warmup) is an update: micro_batch_size x grad_accum
prompts are answered once, and the answers are used for ppo_epochs epochs.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import track, waiting
from trainers.job import Tokenizer
from trainers.job.job import Job
from trainers.job.machine import (
    is_main_process,
    over_processes,
    process_count,
    process_rank,
    wait_for_all,
)
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.checkpoints import load_random_states, load_training, save_training
from trainers.ppo import math as formulas
from trainers.ppo.learning import (
    Experience,
    Learner,
    TrainerArguments,
    mean_over_processes,
    rate_share,
    set_rates,
)
from trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from trainers.ppo.rollout import Batch, batches_of, scatter_answers, table_of
from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.scoring import Answer, Rewards, Score, Scored, filled
from trainers.rewards.sources import model_scores
from trainers.rewards.watch import FIRST, Watch, lines_of
from trainers.rollouts import CORRECTION_CAPPED, ENGINE_MISMATCH, Answers, Engine, Sampling
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.rows.conversation import Prompt
from trainers.rows.packing import in_order
from trainers.say.progress import tell
from trainers.step import settings

LOOKS = 4  # how often held-out prompts are answered during a run
Item = TypeVar("Item")
# What of an update's numbers goes into metrics.jsonl, beside those of every objective.
LOGGED = (
    "reward", "kl", "reward_spread", "kl_per_answer", "entropy", "explained_variance",
    "response_tokens", "ended", ENGINE_MISMATCH, CORRECTION_CAPPED, "policy_loss", "value_loss",
    "clip_fraction", "step_kl", "inner_steps", "stopped_early", "kl_coef", "writing_s",
    "learning_s", "holdout_wins", "holdout_losses",
)  # fmt: skip


@dataclass(kw_only=True)
class PPOTrainer:
    """Everything that updates change or use, and the loop over them. To the frame of a stage it is
    a trainer as those of transformers are.
    """

    job: Job
    args: TrainerArguments
    steps: int  # updates of the whole run
    prompts: Sequence[Prompt]
    learner: Learner
    kl_coefficient: formulas.KLCoefficient
    processing_class: Tokenizer
    stops: Sequence[int]
    engine: Engine  # generates the answers that are learned from
    local: TransformersEngine  # in this process: generates those of evaluations
    rewards: Rewards
    # That this process answers during the run, to see a gamed reward; None: no process does.
    held_out: Sequence[Prompt] | None = None
    # Set by the frame; None: a dry run, which writes none.
    checkpoint_store: CheckpointStore | None = None
    # What the loop keeps.
    callbacks: list[TrainerCallback] = field(default_factory=list)
    rollout_log: RolloutLog | None = None  # None: nothing is written
    tokens: int = 0  # read since the training began or resumed
    new_tokens: int = 0  # since the last line of metrics

    def __post_init__(self) -> None:
        self.options = self.job.options
        self.watch = Watch(self.options["kl_limit"])
        self.roles: Roles = self.learner.roles
        self.model = self.roles.parts[POLICY].model
        self.optimizer = self.learner.optimizer
        self.autocast: Callable[[], Any] = self.learner.autocast
        self.state, self.control = TrainerState(), TrainerControl()
        self.state.is_world_process_zero = is_main_process()
        # What evaluations ask of a trainer.
        self.accelerator = SimpleNamespace(
            unwrap_model=lambda model, **_: model, autocast=self.autocast
        )
        for part in self.rewards.parts:
            if part.score is None:
                part.score = self.role_scores

    # ---------------------------------------------------------------- the loop

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Run every update that is left, or until the process is asked to stop.

        Raises TrainingFailed if a guard stops a run that is no trial.
        """
        stage, world, rank = self.job.stage, process_count(), process_rank()
        self._begin(resume_from_checkpoint)
        look_every = max(1, math.ceil(self.steps / (LOOKS + 1)))
        write_every = settings.lines_every(self.steps)
        shortest = self.options["response_tokens"] if self.job.dry_run else 0
        with closing(self.engine):
            for step in range(self.state.global_step, self.steps):
                self.control = TrainerControl()
                share = rate_share(step, self.steps, warmup=stage.warmup, scheduler=stage.scheduler)
                set_rates(self.optimizer, share)
                size = stage.effective_batch_size
                first = (step * world + rank) * size
                prompts = shuffled(self.prompts, range(first, first + size), seed=stage.seed)
                if world > 1:  # every process draws numbers of its own
                    torch.manual_seed(stage.seed + step * world + rank)
                logs = self.update(prompts, shortest=shortest)
                logs["learning_rate"] = stage.learning_rate * share
                self._is_at(step + 1)
                self.state.log_history = [{"learning_rate": logs["learning_rate"]}]
                is_last = step + 1 == self.steps
                if self.held_out is not None and (step + 1) % look_every == 0 and not is_last:
                    logs |= self.look()
                self._tell("on_step_end")
                # The guards of a resumed run compare with the first lines.
                is_written = self.control.should_log or step % write_every == 0 or step < FIRST
                if is_written or "holdout_wins" in logs or not math.isfinite(logs["loss"]):
                    self._tell("on_log", logs=logs)
                self.guard({**logs, "step": step + 1})
                if self.control.should_save and self.checkpoint_store is not None:
                    self.save(self.checkpoint_store)
                if self.control.should_training_stop:
                    break
        self.roles.back_to_policy()
        self._tell("on_train_end")

    def _begin(self, resume_from_checkpoint: str | None) -> None:
        job = self.job
        if self.held_out is not None:  # by the policy before training: nothing is loaded yet
            self.scores_before = self.held_out_scores()
        if resume_from_checkpoint is not None:
            self.load(Path(resume_from_checkpoint))
        if not job.dry_run:
            wait_for_all()  # the lines of later updates are cut off
            # In all processes: their guards come to the same.
            self.watch.see_earlier(lines_of(job))
            if is_main_process():
                self.rollout_log = RolloutLog(job, self.steps, engine=self.engine.name)
        self._tell("on_train_begin")

    def look(self) -> dict[str, int]:
        """How many held-out answers score above those of the start, and how many below, by their
        names in metrics.jsonl. Call it in every process.
        """
        began = time.monotonic()
        pairs = [
            (new, old)
            for new, old in zip(self.held_out_scores(), self.scores_before, strict=True)
            if new is not None and old is not None
        ]
        wins, losses = sum(new > old for new, old in pairs), sum(new < old for new, old in pairs)
        all_wins, all_losses = over_processes([float(wins), float(losses)], "SUM")
        for callback in self.callbacks:
            if hasattr(callback, "leave_out"):
                callback.leave_out(time.monotonic() - began)
        return {"holdout_wins": int(all_wins), "holdout_losses": int(all_losses)}

    def held_out_scores(self) -> list[Score]:
        """The reward of the policy's likeliest answer to each held-out prompt of this process."""
        if not self.held_out:
            return []
        answers = self.generate(self.held_out, self.local, temperature=0.0)
        scores = self.rewards.sums(self.score(self.held_out, answers).scores)
        self.roles.back_to_policy()
        return scores

    def guard(self, line: Mapping[str, Any]) -> None:
        """Report what is wrong, once each; raise TrainingFailed if it stops the run."""
        job, said = self.job, self.watch.see(line)
        for finding in self.watch.found:
            if finding.stops and job.max_steps is None and not job.dry_run:
                raise TrainingFailed(f"{finding.what} (update {line['step']})", hint=finding.hint)
        for text in said:
            tell(job, f"WARNING: {text}")

    # ---------------------------------------------------------------- one update

    def update(self, prompts: Sequence[Prompt], *, shortest: int = 0) -> dict[str, Any]:
        """Train on one answer to each prompt; the numbers to record.

        Args:
            shortest: No stop token before so many tokens.
        """
        options, learner, device = self.options, self.learner, self.learner.device
        # ---- Rollouts
        began = time.monotonic()
        self.engine.load_weights()
        answers = self.generate(prompts, self.engine, shortest=shortest)
        writing_s = time.monotonic() - began
        batches = self.batches(answers)
        mask_RT = table_of([[1.0] * len(ids) for ids in answers.ids], device)
        # Role by role, so that modules are switched three times per update, not three times per
        # batch.
        scored = self.score(prompts, answers)
        scores_R = torch.tensor(filled(self.rewards.sums(scored.scores)), device=device)
        temperature = options["temperature"]
        policy, entropies = zip(
            *self.followed(
                "probabilities under the policy",
                batches,
                partial(self.roles.log_probs, POLICY, temperature=temperature, with_entropy=True),
            ),
            strict=True,
        )
        reference = self.followed(
            "probabilities under the reference model",
            batches,
            lambda batch: self.roles.log_probs(REFERENCE, batch, temperature)[0],
        )
        values = self.followed("values", batches, self.roles.values)
        old_RT, reference_RT, values_RT = (
            scatter_answers(batches, numbers) for numbers in (policy, reference, values)
        )
        # ---- Rewards
        ended_R = torch.tensor(answers.ended, device=device)
        # Huang et al. 2024, "EOS trick": an answer that does not end is worth less, whatever it
        # says.
        penalised_R = scores_R - options["missing_end_penalty"] * (~ended_R)
        penalty_RT = formulas.kl_penalty(old_RT, reference_RT, mask_RT)
        kl_coef = self.kl_coefficient.value
        rewards_RT = formulas.token_rewards(penalised_R, penalty_RT, mask_RT, kl_coef)
        if options["whiten_rewards"]:
            rewards_RT = formulas.whiten(
                rewards_RT, mask_RT, keep_mean=True, over_processes=mean_over_processes
            )
        # ---- Advantages
        advantages_RT, returns_RT = formulas.generalized_advantages(
            rewards_RT, values_RT, mask_RT, gamma=options["gamma"], lam=options["lam"]
        )
        advantages_RT = formulas.whiten(advantages_RT, mask_RT, over_processes=mean_over_processes)
        means_R = (advantages_RT * mask_RT).sum(1) / mask_RT.sum(1)
        log, number = self.rollout_log, self.state.global_step + 1
        if log is not None and log.is_due(number):
            log.write(number, scored.rollouts(self.rewards, means_R.tolist(), self.stops))
        engine_numbers: dict[str, Any] = {}
        if answers.log_probs:  # another program has drawn the answers
            weights_RT, mismatch, capped = formulas.importance_weights(
                old_RT, table_of(answers.log_probs, device), mask_RT
            )
            # They are positive, so that a token's loss times its weight is the loss of its
            # advantage times the weight.
            advantages_RT = advantages_RT * weights_RT
            engine_numbers = {ENGINE_MISMATCH: mismatch, CORRECTION_CAPPED: capped}
        # ---- Update
        steps = learner.learn(
            Experience(
                batches=batches,
                old_RT=old_RT,
                values_RT=values_RT,
                advantages_RT=advantages_RT,
                returns_RT=returns_RT,
            )
        )
        seen = learner.averaged(
            {
                "reward": scores_R.mean(),
                "reward_spread": scores_R.std(correction=0),
                "kl": formulas.masked_mean(penalty_RT, mask_RT),
                "kl_per_answer": penalty_RT.sum(1).mean(),
                "entropy": torch.cat(entropies).mean(),
                "explained_variance": formulas.explained_variance(values_RT, returns_RT, mask_RT),
                "response_tokens": mask_RT.sum(1).mean(),
                "ended": ended_R.float().mean(),
                **self._of_each_reward(scored),
                **engine_numbers,
            }
        )
        self.new_tokens += answers.tokens
        self.tokens += answers.tokens
        self.kl_coefficient.adapt(seen["kl_per_answer"], len(prompts))
        loss = steps["policy_loss"] + steps["value_loss"]
        learning_s = time.monotonic() - began - writing_s
        seen |= {"kl_coef": kl_coef, "writing_s": writing_s, "learning_s": learning_s}
        return {"loss": loss, **seen, **steps}

    # ---------------------------------------------------------------- rollouts

    def generate(self, prompts: Sequence[Prompt], engine: Engine, **keys: Any) -> Answers:
        """The policy's answers.

        Args:
            prompts: An answer to each.
            engine: Generates them.
            keys: Of `Sampling`, in place of the stage's.
        """
        own = {"limit": self.options["response_tokens"], "temperature": self.options["temperature"]}
        ids = [list(row.prompt_ids) for row in prompts]
        return engine.generate(ids, Sampling(**{**own, "stops": self.stops, **keys}))

    def batches(self, answers: Answers) -> list[Batch]:
        return batches_of(
            answers,
            self.job.stage.micro_batch_size,
            planned=self.job.entry.stage.micro_batch_size,
            pad_id=self.processing_class.pad_token_id,
            device=self.learner.device,
        )

    def followed(
        self, what: str, batches: Sequence[Batch], numbers: Callable[[Batch], Item]
    ) -> list[Item]:
        """The numbers of each batch, while it shows for how many answers they are computed."""
        each, count = len(batches[0].rows), sum(len(batch.rows) for batch in batches)
        shown = track(batches, what, unit="answers", each=each, of=count)
        with torch.no_grad(), self.autocast():
            return [numbers(batch) for batch in shown]

    # ---------------------------------------------------------------- rewards

    def score(self, prompts: Sequence[Prompt], answers: Answers) -> Scored:
        """The answers with what each reward says of them, before any penalty."""
        decode = self.processing_class.decode
        texts = [
            decode(ids[:-1] if ended else ids, skip_special_tokens=True).strip()
            for ids, ended in zip(answers.ids, answers.ended, strict=True)
        ]
        given = [
            Answer(row.prompt, text, row.answer, row.prompt_ids, ids)
            for row, text, ids in zip(prompts, texts, answers.ids, strict=True)
        ]
        return Scored(given, [part(given) for part in self.rewards.parts])

    def role_scores(self, answers: Sequence[Answer]) -> list[float]:
        part = self.roles.parts[REWARD]
        if part.head is None:  # it has a base of its own
            with self.autocast():
                size = self.job.stage.micro_batch_size
                return model_scores(part.model, answers, at_once=size)
        ids = [[*one.answer_ids] for one in answers]
        batches = self.batches(Answers([one.prompt_ids for one in answers], ids, []))
        scores = torch.cat(self.followed("scores", batches, self.roles.scores)).float().tolist()
        self.roles.back_to_policy()
        return in_order([batch.rows for batch in batches], scores)

    def _of_each_reward(self, scored: Scored) -> dict[str, float]:
        """Mean and spread of each of several rewards, and the share of answers without a score, by
        their names in metrics.jsonl.
        """
        found: dict[str, float] = {}
        for part, scores in zip(self.rewards.parts, scored.scores, strict=True):
            given = [score for score in scores if score is not None] or [0.0]
            found |= {
                f"rewards/{part.key}/mean": fmean(given),
                f"rewards/{part.key}/std": pstdev(given),
                f"rewards/{part.key}/missing": scores.count(None) / len(scores),
            }
        return {name: found[name] for name in self.rewards.logs}

    # ---------------------------------------------------------------- checkpoints

    def save(self, store: CheckpointStore) -> None:
        """Write a checkpoint: what is trained, its optimizer, the KL coefficient and all random
        states. Call it in every process.

        Raises MachineNotReady if the disk does not take it.
        """
        step = self.state.global_step
        if is_main_process():
            store.begin(step)
        wait_for_all()
        with store.writing(step), waiting("saving a checkpoint"):
            save_training(
                store.place(step), self._trained(), self.optimizer, weights=True,
                scaler=self.learner.scaler.state_dict(), kl_coef=self.kl_coefficient.value,
            )  # fmt: skip
        self._tell("on_save")

    def load(self, place: Path) -> None:
        """Put everything back as it was when the checkpoint was written."""
        more = load_training(place, self._trained(), self.optimizer)
        if more["scaler"]:
            self.learner.scaler.load_state_dict(more["scaler"])
        self.kl_coefficient.value = more["kl_coef"]
        load_random_states(place, seed=self.job.stage.seed)
        self._is_at(int(place.name.rpartition("-")[2]))

    def _is_at(self, step: int) -> None:
        size = self.job.stage.effective_batch_size * process_count()
        self.state.global_step, self.state.epoch = step, step * size / len(self.prompts)

    def _trained(self) -> dict[str, Any]:
        return {
            f"{role}.{name}": parameter
            for role in (POLICY, VALUE)
            for name, parameter in self.roles.trained(role).items()
        }

    # ---------------------------------------------------------------- what the frame asks

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callbacks.append(callback)

    def remove_callback(self, kind: type) -> None:
        """Nothing: there are none but those that were added."""

    def _tell(self, event: str, **about: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **about)

    def all_tokens(self) -> dict[str, int]:
        """The tokens of prompts and answers, as if each process had as many as this one."""
        tokens = self.tokens * process_count()
        return {"tokens": tokens, "computed_tokens": tokens}

    def take_token_count(self) -> int:
        count, self.new_tokens = self.new_tokens * process_count(), 0
        return count


def shuffled(items: Sequence[Item], places: range, *, seed: int) -> list[Item]:
    """The items at these places of an endless stream of all of them, shuffled anew each time.

    Args:
        seed: Of the order.
    """

    @cache
    def order(epoch: int) -> list[int]:
        random = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(len(items), generator=random).tolist()

    return [items[order(place // len(items))[place % len(items)]] for place in places]
