"""Continued pre-training: plain text, of which every token is learned.

Packing keeps documents apart, whole documents are held out, and general text can be mixed in
against forgetting (Meditron kept 1 % of it: github.com/epfLLM/meditron).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from msgspec import structs

from advisor.ground.errors import InputError
from trainers.job import Tokenizer
from trainers.job.files import digest_of
from trainers.job.job import Job
from trainers.rows import Prepared, Row
from trainers.rows.sequences import Picked, lengths
from trainers.rows.stage_rows import prepare_rows
from trainers.sft import SFT
from trainers.stage.run import trains


class CPT(SFT):
    """Learns to continue documents."""

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
        """The corpus, with the replay share of general text mixed in.

        Raises InputError for a corpus shorter than one sequence.
        """
        data = super().rows(job, tokenizer)
        tokens = data.tokens
        if tokens < job.stage.seq_len:
            raise InputError(
                f"the corpus has {tokens:,} tokens to train on, fewer than one sequence of"
                f" {job.stage.seq_len:,}",
                hint="add text, or set a smaller seq_len",
            )
        if not job.options.get("replay"):
            return data
        general = general_text(job, tokenizer)
        share = float(job.options["replay_share"])
        mixed = with_replay(data, general.train, share=share, seed=job.stage.seed)
        return replace(mixed, digest=digest_of([data.digest, general.digest, share]))


def general_text(job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
    """The rows of the file named by `replay`."""
    own = structs.replace(job.data, path=str(job.options["replay"]), format=None, mapping=None)
    entry = structs.replace(job.entry, name=f"{job.entry.name}-replay", data=own)
    prepared = prepare_rows(replace(job, entry=entry), tokenizer)
    parts = (prepared.train, prepared.holdout)
    return replace(prepared, train=Picked(parts, range(sum(map(len, parts)))))


def with_replay(
    data: Prepared[Row], general: Sequence[Row], *, share: float, seed: int
) -> Prepared[Row]:
    """The corpus with general rows shuffled in until they are `share` of all tokens, and a note of
    how many they are.
    """
    own = data.tokens
    wanted = own * share / (1 - share)
    order = list(range(len(general)))
    random.Random(seed).shuffle(order)  # noqa: S311  (an order that repeats, not a secret)
    sums = lengths(general)[order].cumsum(dtype="int64")
    count = min(len(order), int(sums.searchsorted(wanted)) + 1)
    taken = int(sums[count - 1])
    mixed = [*range(len(data.train)), *(len(data.train) + place for place in order[:count])]
    random.Random(seed + 1).shuffle(mixed)  # noqa: S311
    short = "" if taken >= wanted else f" (wanted {share:.0%}: there is no more general text)"
    note = (
        f"{count:,} rows of general text mixed in: {taken / (own + taken):.1%} of the tokens{short}"
    )
    train = Picked([data.train, general], mixed)
    return replace(data, train=train, notes=(*data.notes, note))


train = trains(CPT)
