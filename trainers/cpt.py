"""Continued pre-training: plain text, of which every token is learned.

Packing keeps documents apart, whole documents are held out, and general text can be mixed in
against forgetting (Meditron kept 1 % of it: github.com/epfLLM/meditron).
"""

from __future__ import annotations

from advisor.ground.errors import InputError
from trainers.job import Tokenizer
from trainers.job.job import Job
from trainers.rows import Prepared, Row
from trainers.sft import SFT
from trainers.stage.run import trains


class CPT(SFT):
    """Learns to continue documents."""

    def own_rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
        """The corpus. Raises InputError for one that is shorter than one sequence."""
        data = super().own_rows(job, tokenizer)
        if data.tokens < job.stage.seq_len:
            raise InputError(
                f"the corpus has {data.tokens:,} tokens to train on, fewer than one sequence of"
                f" {job.stage.seq_len:,}",
                hint="add text, or set a smaller seq_len",
            )
        return data


train = trains(CPT)
