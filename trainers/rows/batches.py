"""Which rows go through the device together, and in which order: at random, or rows of similar
length in one micro-batch, so that little of it is padding.

Only lengths are looked at. The order follows from seed and epoch alone: it is the same on any
number of processes that share an optimizer step of the same size, and in a run that resumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from trainers.job.job import Job
from trainers.rows.sequences import lengths

# Rows are sorted by length within pools of so many optimizer steps, and there are at least so many
# pools: rows of one length do not meet in every epoch. (transformers' LengthGroupedSampler has the
# same two numbers.) Of few rows a pool has at least so many steps, or all of them.
POOL_STEPS, FEWEST_POOLS, FEWEST_STEPS = 50, 4, 8


@dataclass(frozen=True)
class Batches:
    """How the sequences of a stage are put into micro-batches.

    Args:
        lengths: Tokens of each sequence; of a pair those of its longer side. An int array.
        micro: Sequences of a micro-batch.
        per_step: Sequences of an optimizer step, on all processes together.
        seed: The stage's.
        grouped: Sequences of similar length together; else at random.
        processes: That share a step.
    """

    lengths: Any
    micro: int
    per_step: int
    seed: int
    grouped: bool
    processes: int = 1

    @classmethod
    def of(cls, job: Job, sequences: Sequence[Any], *, processes: int) -> Batches:
        stage = job.stage
        grouped = stage.group_by_length and not stage.packing
        # Where memory has room for fewer, these come from groups as they were planned.
        micro = job.entry.stage.micro_batch_size if grouped else stage.micro_batch_size
        return cls(
            lengths=lengths(sequences).astype("int32"),
            micro=micro,
            per_step=stage.effective_batch_size * processes,
            seed=stage.seed,
            grouped=grouped,
            processes=processes,
        )

    @property
    def doubled(self) -> int:
        """Sequences at the end of a pass that are read twice, since there are fewer than processes
        that share them.
        """
        rest = len(self.lengths) % (self.micro * self.processes)
        return self.processes - rest if 0 < rest < self.processes else 0

    @property
    def pool_rows(self) -> int:
        """Rows that are sorted together: of whole optimizer steps, and enough for a choice."""
        steps = len(self.lengths) // (FEWEST_POOLS * self.per_step)
        return max(FEWEST_STEPS, min(POOL_STEPS, steps)) * self.per_step

    def order(self, epoch: int) -> Any:
        """Every place once, micro-batch after micro-batch.

        At random, as accelerate's SeedableRandomSampler does it, which would lose the epoch of a
        run that several processes resume (accelerate 1.15: it does not look through its own two
        wrappers).

        Or pools of rows drawn at random, each sorted by length and cut into micro-batches; these
        are then dealt to the optimizer steps at random, so that a step has long and short rows.
        Within a step the longest come first: processes side by side then have about equal work. The
        step with the longest row comes first, so that memory that is too small is noticed at once.
        """
        if not self.grouped:
            import torch

            generator = torch.Generator().manual_seed(self.seed + epoch)
            return torch.randperm(len(self.lengths), generator=generator).numpy()
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        whole = len(order) - len(order) % self.micro  # the rest is the last, smaller micro-batch
        size = self.pool_rows
        for start in range(0, whole, size):
            pool = order[start : min(start + size, whole)]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")].reshape(-1, self.micro)
            order[start : start + pool.size] = random.permutation(pool).ravel()
        steps = whole // self.per_step
        if steps:
            head = order[: steps * self.per_step].reshape(steps, -1, self.micro)
            longest = self.lengths[head].max(axis=2)
            by_length = np.argsort(-longest, axis=1, kind="stable")
            head = np.take_along_axis(head, by_length[:, :, None], axis=1)
            first = int(longest.max(axis=1).argmax())
            head[[0, first]] = head[[first, 0]]
            order[: head.size] = head.ravel()
        return order

    def computed(self, order: Any) -> int:
        """Tokens of all micro-batches in that order, each padded to its longest sequence."""
        lengths = self.lengths[order]
        starts = np.arange(0, len(lengths), self.micro)
        sizes = np.diff(np.append(starts, len(lengths)))
        return int((np.maximum.reduceat(lengths, starts).astype(np.int64) * sizes).sum())

    def padding(self) -> float:
        """The share of an epoch's tokens that is padding; of pairs, beside what is always added to
        the shorter side.
        """
        return 1 - int(self.lengths.sum(dtype="int64")) / max(1, self.computed(self.order(0)))

    def describe(self, rows: int, *, pairs: bool = False) -> str:
        """What the batches are, in a line; empty where nothing can be padded.

        Args:
            rows: How many there are; more than sequences if they are packed.
            pairs: The shorter side of each is filled up to the longer one besides.
        """
        sequences, said = len(self.lengths), []
        share = f"{self.padding():.0%} of the tokens computed are padding"
        if rows > sequences:
            each = rows * min(self.per_step, sequences) / sequences
            said.append(
                f"{rows:,} rows in {sequences:,} packed sequences, about {each:.0f} rows in an"
                f" optimizer step; {share}"
            )
        elif self.micro > 1 and sequences > 1:
            alike = "rows of similar length share a batch: " if self.grouped else ""
            beside = ", beside that of the shorter answers" if pairs else ""
            said.append(f"{alike}{share}{beside}")
        if self.doubled:
            said.append(
                f"{self.doubled} of {sequences:,} sequences are read twice in a pass:"
                f" {self.processes - self.doubled} are left at its end for {self.processes}"
                " processes"
            )
        return "; ".join(said)


class RowOrder:
    """A sampler that gives the rows of an epoch in the order of its batches.

    Args:
        batches: The rows.
        epoch: The epoch that begins, from 0.
    """

    def __init__(self, batches: Batches, epoch: Callable[[], int]) -> None:
        self.batches, self.epoch = batches, epoch

    def __len__(self) -> int:
        return len(self.batches.lengths)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.batches.order(self.epoch()))


class Rounds:
    """A batch sampler for several processes, which take its micro-batches in turn: in each round
    every process has one. accelerate would fill up the last round of a pass with rows from its
    beginning; here its rows are shared out, so that a step has the same rows on any number of
    processes. Only if there are fewer rows than processes some are read twice.

    Args:
        order: The rows of a pass.
        micro: Rows of a micro-batch.
        processes: That take turns.
    """

    drop_last = False

    def __init__(self, order: Any, *, micro: int, processes: int) -> None:
        self.sampler, self.batch_size, self.processes = order, micro, processes

    def __len__(self) -> int:
        return self.processes * math.ceil(len(self.sampler) / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        rows, micro, processes = iter(self.sampler), self.batch_size, self.processes
        while block := list(islice(rows, micro * processes)):
            if len(block) < processes:
                block = [block[place % len(block)] for place in range(processes)]
            # Full ones if every process has one, as a process alone would have them; else about
            # equal ones.
            ends = [place * len(block) // processes for place in range(processes + 1)]
            if math.ceil(len(block) / micro) == processes:
                ends = [*range(0, len(block), micro), len(block)]
            yield from (block[start:end] for start, end in pairwise(ends))
