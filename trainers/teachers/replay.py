"""General rows mixed into a stage against forgetting: those of a file, or the base model's own
answers to bundled prompts (self-synthesised rehearsal, arXiv:2403.01244). Nobody trains on
trainers/evaluation/general.jsonl: it is what forgetting is measured on.

The base answers greedily before its weights are loaded for training, as many prompts as the share
asks for. Answers are kept in the run folder, so that a resumed run reads the same, and in the cache
folder, so that the next run of the same base need not wait for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.ground.counting import counted
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import cache_folder
from trainers.job import Tokenizer
from trainers.job.files import digest_of, keep_value, kept_value
from trainers.job.job import Job
from trainers.job.machine import give_back_memory, process_count, torch_device
from trainers.keep.checkpoint_store import base_digest
from trainers.rows import Prepared, Row
from trainers.rows.conversation import PROMPTS, Prompt
from trainers.rows.sequences import Picked, lengths
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_frozen
from trainers.step import settings
from trainers.teachers.teacher import BLOCK, Answering, Written, answered_row, written_answers

BUNDLED = Path(__file__).parent / "replay.jsonl"
ANSWER_TOKENS = 128  # at most: advisor/estimate/whole_time.py counts them


def replayed(
    job: Job, tokenizer: Tokenizer, read: Callable[[Job, Tokenizer], Prepared[Row]]
) -> Prepared[Row]:
    """The stage's rows with general ones mixed in, as its `replay` says.

    Raises InputError for a base without a chat template that is to answer prompts.

    Args:
        read: Gives the stage's own rows. A tokenizer without a template may get a plain one then.
    """
    source = job.options.get("replay")
    if isinstance(source, dict) and not tokenizer.chat_template:
        raise InputError(
            f"replay: {job.plan.model} has no chat template, so that it cannot answer prompts",
            where=f"stage {job.stage.name}",
            allowed="replay: a file or folder of general text",
            hint="name one, or remove replay",
        )
    data = read(job, tokenizer)
    if not source:
        return data
    share = float(job.options["replay_share"])
    wanted = data.tokens * share / (1 - share)
    if isinstance(source, dict):
        general = own_answers(job, tokenizer, int(source["rows"]), wanted)
    else:
        general = general_text(job, tokenizer)
    if not len(general.train):
        return replace(data, notes=(*data.notes, *general.notes, "no general text is mixed in"))
    mixed = with_replay(data, general.train, share=share, seed=job.stage.seed)
    notes = (*mixed.notes, *general.notes)
    return replace(mixed, notes=notes, digest=digest_of([data.digest, general.digest, share]))


def general_text(job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
    """The rows of the file named by `replay`."""
    prepared = prepare_rows(_of_file(job, str(job.options["replay"])), tokenizer)
    parts = (prepared.train, prepared.holdout)
    return replace(prepared, train=Picked(parts, range(sum(map(len, parts)))))


def _of_file(job: Job, path: str, mapping: dict[str, str] | None = None, **keys: Any) -> Job:
    """A job that prepares the rows of another file."""
    own = structs.replace(job.data, path=path, format=None, mapping=mapping)
    stage = structs.replace(job.entry.stage, **keys)
    entry = structs.replace(job.entry, name=f"{job.entry.name}-replay", data=own, stage=stage)
    return replace(job, entry=entry)


def with_replay(
    data: Prepared[Row], general: Sequence[Row], *, share: float, seed: int
) -> Prepared[Row]:
    """The rows with general ones shuffled in until they are `share` of all tokens, and a note of
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
    share_is = f"{taken / (own + taken):.1%} of the tokens{short}"
    note = f"{counted(count, 'row')} of general text mixed in: {share_is}"
    train = Picked([data.train, general], mixed)
    return replace(data, train=train, notes=(*data.notes, note))


# --------------------------------------------------------------------------- its own answers


def own_answers(job: Job, tokenizer: Tokenizer, most: int, wanted: float) -> Prepared[Row]:
    """Rows of bundled prompts with the answers of the base, the first of at most `most` that have
    `wanted` tokens together. An answer that the limit cut is left out, and counted.
    """
    limit = min(ANSWER_TOKENS, job.stage.seq_len // 2)
    columns = {"question": "prompt"}
    asking = _of_file(job, str(BUNDLED), columns, truncation="drop", holdout=0.0)
    asked: Prepared[Any] = prepare_rows(
        asking, tokenizer, PROMPTS, seq_len=job.stage.seq_len - limit
    )
    prompts: list[Prompt] = list(asked.train[:most])
    rows: list[Row] = []
    cut = tokens = 0
    with closing(_answers(job, tokenizer, prompts, limit)) as answers:
        for prompt, written in zip(prompts, answers, strict=False):
            if written.ended:
                rows.append(answered_row(prompt, written, tokenizer))
                tokens += rows[-1].tokens
            cut += not written.ended
            if tokens >= wanted:
                break
    note = f"the base answered {counted(len(rows) + cut, 'general prompt')}"
    if job.dry_run:
        note = "they stand for answers of the base, which a dry run does not write"
    if cut:
        were = "was" if cut == 1 else "were"
        note += f"; {counted(cut, 'answer')} {were} cut at {limit} tokens and left out"
    digest = digest_of([list(row.input_ids) for row in rows])
    return replace(asked, train=tuple(rows), holdout=(), notes=(note,), digest=digest)


def _answers(
    job: Job, tokenizer: Tokenizer, prompts: Sequence[Prompt], limit: int
) -> Generator[Written]:
    """The answers in the order of the prompts, made as they are asked for: a block a process."""
    if job.dry_run:  # the first is as long as an answer may be
        for size in (limit, *[limit // 2] * (len(prompts) - 1)):
            yield Written([tokenizer.eos_token_id] * size, ended=True)
        return
    device = torch_device(job.plan.launch.device)
    # Nothing of it is trained here, so that mixed precision needs no float32 weights of it.
    dtype = settings.autocast_dtype(job, device) or job.stage.weights_dtype
    stage = structs.replace(job.entry.stage, weights_dtype=dtype)
    own = replace(job, entry=structs.replace(job.entry, stage=stage))
    base = job.base_model
    answering = Answering(
        job=job,
        tokenizer=tokenizer,
        load=lambda: load_frozen(own, device, base, base=base),
        limit=limit,
        temperature=0.0,
    )
    depends = [base_digest(job), stage.quantization, dtype, limit]

    def write(block: Sequence[Prompt], number: int) -> Sequence[Written]:
        """The answers to a block, of an earlier run if one has them."""
        key = digest_of([*depends, [list(prompt.prompt_ids) for prompt in block]])
        path = cache_folder() / "replay" / f"{key[:32]}.json"
        known = kept_value(path, key)
        found = [Written(*one) for one in known] if known else answering(block, number)
        if not known:
            with suppress(MachineNotReady):  # it would have saved time, and no more
                keep_value(path, key, found)
        return found

    ids = digest_of([*depends, [list(prompt.prompt_ids) for prompt in prompts]])
    folder = job.run / "prepared" / f"{job.entry.name}-replay-{ids[:16]}"
    each = BLOCK * process_count()
    try:
        for done in range(0, len(prompts), each):
            yield from written_answers(folder, prompts[: done + each], write, of="the base")[done:]
    finally:
        if answering.model is not None:
            answering.model = None
            give_back_memory(device)
