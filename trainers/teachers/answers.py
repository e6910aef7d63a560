"""Answers that a teacher writes before training, for requests that the data do not answer.

They are kept in the run folder, one line each. Each process lets its own copy of the teacher answer
its share of the blocks of requests, into a file for each block, and the main process puts them
together: an attempt that goes on writes only the blocks that are missing. What is drawn for a
request depends on the seed and the place of its block alone, so that an interrupted run gets the
answers of an unbroken one, and any number of processes those of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.files import DISK, cannot_write
from advisor.ground.progress import track
from trainers.job.files import digest_of, make_folder
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count, process_rank
from trainers.job.types import Tokenizer
from trainers.rows import Prepared, Row
from trainers.rows.conversation import Prompt
from trainers.rows.row import IGNORED, ids_of, normalise_text
from trainers.say.processes import others_wait_for, wait_for

BLOCK = 32  # requests that are answered together


@dataclass(frozen=True, slots=True)
class Written:
    """One answer of the teacher."""

    ids: list[int]
    ended: bool  # by a stop token, not by the limit


def answers_file(job: Job, prompts: str, teacher: str) -> Path:
    """Where the answers are kept: a file for these requests, this teacher and these settings.

    Args:
        prompts: A digest of them.
        teacher: A digest of it.
    """
    depends = {
        "prompts": prompts,
        "teacher": teacher,
        "quantization": job.options.get("teacher_quantization"),
        "temperature": job.options["temperature"],
        "response_tokens": job.options["response_tokens"],
        "seed": job.stage.seed,
    }
    return job.run / "prepared" / f"{job.entry.name}-teacher-{digest_of(depends)[:16]}.jsonl"


def read_answers(path: Path) -> list[Written]:
    """The answers in the file, in order; [] without one. A damaged line ends the list."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
            found.append(Written([int(token) for token in value["ids"]], bool(value["ended"])))
        except (ValueError, KeyError, TypeError):
            break
    return found


def written_answers(
    path: Path,
    prompts: Sequence[Prompt],
    write: Callable[[Sequence[Prompt], int], Sequence[Written]],
) -> list[Written]:
    """An answer to each request; those that are kept, and new ones for the others.

    Processes are not connected yet: they see each other's files.

    Raises MachineNotReady if the disk does not take the answers, ConnectionLost if the main process
    fails or the launcher is gone.

    Args:
        write: Answers a block of requests; gets its number.
    """
    folder = path.with_suffix(".blocks")
    blocks = [prompts[start : start + BLOCK] for start in range(0, len(prompts), BLOCK)]
    files = [folder / f"{number}.jsonl" for number in range(len(blocks))]

    def is_there(number: int) -> bool:
        return len(read_answers(files[number])) == len(blocks[number])

    def all_answers() -> list[Written] | None:
        known = read_answers(path)
        return known if len(known) == len(prompts) else None

    found = all_answers()
    if found is not None:
        return found
    with others_wait_for(path) if is_main_process() else nullcontext():
        try:
            make_folder(folder)
            mine = range(process_rank(), len(blocks), process_count())
            for number in track(mine, "answers of the teacher", unit="answers", each=BLOCK):
                if not is_there(number):
                    answers = write(blocks[number], number)
                    lines = [json.dumps({"ids": one.ids, "ended": one.ended}) for one in answers]
                    DISK.replace(files[number], "".join(f"{line}\n" for line in lines).encode())
            if is_main_process():
                wait_for(path, lambda: all(map(is_there, range(len(blocks)))) or None)
                DISK.replace(path, b"".join(file.read_bytes() for file in files))
                DISK.discard(folder)
        except OSError as error:
            raise cannot_write(path, error) from error
    return wait_for(path, all_answers)


def answered_row(prompt: Prompt, answer: Written, tokenizer: Tokenizer) -> Row:
    """A request with an answer to learn, as a row."""
    text = tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
    return Row(
        number=prompt.number,
        input_ids=ids_of([*prompt.prompt_ids, *answer.ids]),
        labels=ids_of([*[IGNORED] * len(prompt.prompt_ids), *answer.ids]),
        prompt=prompt.prompt,
        shown=prompt.shown,
        expected=text,
        key=prompt.key,
        text=normalise_text(prompt.prompt + text),
    )


def answered(
    data: Prepared[Prompt], held: Sequence[Row], rows: Sequence[Row], notes: Sequence[str]
) -> Prepared[Row]:
    """The prepared requests with held-out and trained rows in their place."""
    digest = hashlib.sha256(data.digest.encode())
    for row in (*rows, *held):
        digest.update(ids_of(row.input_ids).tobytes())
    given: Any = data
    return replace(
        given,
        train=tuple(rows),
        holdout=tuple(held),
        notes=(*data.notes, *notes),
        digest=digest.hexdigest(),
    )


def cut_note(written: Sequence[Written], limit: int) -> str:
    """How many answers there are, and how many the limit cut."""
    cut = sum(not one.ended for one in written)
    tokens = sum(len(one.ids) for one in written)
    return (
        f"the teacher wrote {len(written):,} answers of {tokens / max(1, len(written)):.0f} tokens"
        f" on average; {cut:,} are cut at response_tokens {limit:,}"
    )
