"""Answers that a teacher writes before training, for requests that the data do not answer.

They are kept in the run folder, one line each, as they come: an attempt that goes on writes only
those that are missing. What is drawn for a request depends on the seed and the place of its block
alone, so that an interrupted run gets the answers of an unbroken one, and any number of processes
those of one: each lets its own copy of the teacher answer its share of the blocks, into a file for
each block, and the main process puts them together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.files import DISK, cannot_write
from advisor.ground.progress import track, waiting
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
    """The whole lines of the file, in order; [] without one. What a crash left of a line is cut
    off, and a line of another kind ends the list.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return []
    found = []
    for line in content.split(b"\n")[:-1]:
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
    *,
    say: Callable[[str], None],
) -> list[Written]:
    """An answer to each request; those that the file has, and new ones for the others.

    Raises MachineNotReady if the disk does not take them.

    Args:
        write: Answers a block of requests; gets its number.
    """
    known = read_answers(path)
    whole = len(known) if len(known) >= len(prompts) else len(known) // BLOCK * BLOCK
    found = known[: min(whole, len(prompts))]
    if len(found) == len(prompts):
        return found
    if process_count() > 1:
        return _written_together(path, prompts, write, found, say=say)
    if found:
        say(f"{len(found):,} of {len(prompts):,} answers of the teacher are there already")
    make_folder(path.parent)
    try:
        with path.open("wb") as file:
            for one in found:
                file.write(_line(one))
            with waiting(
                "answers of the teacher", total=len(prompts), unit="answers", done=len(found)
            ) as wait:
                for start in range(len(found), len(prompts), BLOCK):
                    new = write(prompts[start : start + BLOCK], start // BLOCK)
                    file.writelines(map(_line, new))
                    file.flush()
                    os.fsync(file.fileno())
                    found += new
                    wait.at(len(found))
        say(f"the teacher has written {len(found):,} of {len(prompts):,} answers")
    except OSError as error:
        raise cannot_write(path, error) from error
    return found


def _written_together(
    path: Path,
    prompts: Sequence[Prompt],
    write: Callable[[Sequence[Prompt], int], Sequence[Written]],
    found: list[Written],
    *,
    say: Callable[[str], None],
) -> list[Written]:
    """The same with several processes, which are not connected yet: they see each other's files.

    Raises ConnectionLost if the main process fails or the launcher is gone.

    Args:
        found: Whole blocks that are there already.
    """
    folder = path.with_suffix(".blocks")
    left = range(len(found) // BLOCK, -(-len(prompts) // BLOCK))
    files = {number: folder / f"{number}.jsonl" for number in left}

    def block(number: int) -> Sequence[Prompt]:
        return prompts[number * BLOCK : (number + 1) * BLOCK]

    def is_there(number: int) -> bool:
        return len(read_answers(files[number])) == len(block(number))

    def all_answers() -> list[Written] | None:
        known = read_answers(path)
        return known[: len(prompts)] if len(known) >= len(prompts) else None

    with others_wait_for(path) if is_main_process() else nullcontext():
        try:
            make_folder(folder)
            mine = [number for number in left if number % process_count() == process_rank()]
            for number in track(mine, "answers of the teacher", unit="answers", each=BLOCK):
                if not is_there(number):
                    content = b"".join(map(_line, write(block(number), number)))
                    DISK.replace(files[number], content)
            if is_main_process():
                wait_for(path, lambda: all(map(is_there, left)) or None)
                new = [one for number in left for one in read_answers(files[number])]
                DISK.replace(path, b"".join(map(_line, [*found, *new])))
                DISK.discard(folder)
                say(f"the teacher has written {len(prompts):,} of {len(prompts):,} answers")
        except OSError as error:
            raise cannot_write(path, error) from error
    return wait_for(path, all_answers)


def _line(one: Written) -> bytes:
    return json.dumps({"ids": one.ids, "ended": one.ended}).encode() + b"\n"


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
    data: Prepared[Prompt], rows: Sequence[Row], held: Sequence[Row], notes: Sequence[str]
) -> Prepared[Row]:
    """The prepared requests with their rows in their place."""
    digest = hashlib.sha256(data.digest.encode())
    for row in (*rows, *held):
        digest.update(ids_of(row.input_ids).tobytes())
    return Prepared(
        train=tuple(rows),
        holdout=tuple(held),
        rows=data.rows,
        dropped=data.dropped,
        truncated=data.truncated,
        split=data.split,
        notes=(*data.notes, *notes),
        template=data.template,
        turn_ends=data.turn_ends,
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
