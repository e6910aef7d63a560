"""A PPO stage in memory: its prompts and roles. The processes that train it and the one that judges
its result load the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from advisor.ground.progress import board
from trainers.job.job import JUDGE, Job
from trainers.job.machine import MemoryMeter
from trainers.job.process import LOADING, WHILE_LOADING
from trainers.job.types import Tokenizer
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.resuming import open_store
from trainers.ppo.build import build, faults, reward_fingerprint, reward_model_folder
from trainers.ppo.roles import POLICY
from trainers.ppo.steps import PPOArguments
from trainers.rewards.sources import source_note
from trainers.rows import Prepared
from trainers.rows.conversation import PROMPTS, Prompt
from trainers.rows.stage_rows import prepare_rows
from trainers.say.processes import connect
from trainers.say.progress import LOAD, Parts, tell
from trainers.stage.opening import OpenStage, describe, open_stage
from trainers.step import settings
from trainers.step.out_of_memory import with_room

if TYPE_CHECKING:
    from trainers.ppo.update import PPO


@dataclass(frozen=True, kw_only=True)
class LoadedPPO:
    """The prompts and roles of a stage."""

    job: Job  # with what `auto` is on this machine
    opened: OpenStage
    tokenizer: Tokenizer
    data: Prepared[Prompt]
    memory: MemoryMeter
    ppo: PPO
    reward: str | None  # where rewards come from, in words
    stops: list[str]  # tokens that were added to those that end an answer

    def open_store(self, *, processes: int) -> CheckpointStore:
        """The stage's checkpoints.

        Args:
            processes: How many train it.
        """
        job, data = self.job, self.data
        steps = settings.total_steps(job, len(data.train), processes=processes)
        return open_store(
            job, self.opened.versions, steps=steps, rows=data.digest,
            model=self.ppo.roles.parts[POLICY].model,
            more={"reward": reward_fingerprint(job, (*data.train, *data.holdout))},
            processes=processes,
        )  # fmt: skip


def load_stage(job: Job, parts: Parts) -> LoadedPPO:
    """The stage's prompts and roles, loaded.

    Raises InputError for a plan or data that cannot be trained on, and MachineNotReady for what the
    machine lacks.
    """
    parts.begin(LOAD)
    job.enter(LOADING)
    job.process.stop.costs = WHILE_LOADING
    opened = open_stage(job, lambda: PPOArguments, faults)
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from trainers.start.attention import with_attention
    from trainers.start.loading import load_tokenizer

    job = with_room(with_attention(job, opened.device))
    tokenizer = load_tokenizer(job)
    data = prepare_rows(
        job, tokenizer, PROMPTS, seq_len=job.stage.seq_len - job.options["response_tokens"]
    )
    if job.part != JUDGE:  # the process that trained has said it
        for line in describe(data):
            tell(job, line)
    folder = reward_model_folder(job, (*data.train, *data.holdout))
    note = source_note(job, (*data.train, *data.holdout))
    memory = MemoryMeter(opened.device)
    board.memory = memory.in_use
    connect(opened.device)
    ppo, notes, added = build(job, opened.device, opened.update, tokenizer, data, folder)
    if job.part != JUDGE:
        for message in [note, *notes]:
            tell(job, message)
    return LoadedPPO(
        job=job,
        opened=opened,
        tokenizer=tokenizer,
        data=data,
        memory=memory,
        ppo=ppo,
        reward=note,
        stops=added,
    )
