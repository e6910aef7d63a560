"""The teacher of a distillation: a model whose next-token distributions are learned, and that
writes answers before training for requests that the data do not answer.

Both distributions have to be over the same tokens, so the teacher's tokenizer is compared with the
student's before any weight is read. Its output matrix may be padded to another size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from advisor.ground.errors import InputError
from advisor.ground.progress import board, waiting
from advisor.methods import methods
from advisor.plan.entries import path_from
from advisor.record.content import folder_digest
from trainers.job import Device, Tokenizer
from trainers.job.files import digest_of, keep_value, kept_value
from trainers.job.job import Job, model_source
from trainers.job.machine import (
    is_main_process,
    others_wait_for,
    process_count,
    process_rank,
    torch_device,
    wait_for,
)
from trainers.rows import Prepared, Row
from trainers.rows.conversation import Prompt
from trainers.rows.row import IGNORED, ids_of, normalise_text
from trainers.start.loading import (
    enable_stop_tokens,
    load_frozen,
    read_adapter_config,
    read_tokenizer,
    update_of,
)
from trainers.step import settings

# Tokens that one of two tokenizers may lack: special tokens that a later release of a model added.
MISSING_SHARE = 0.005
TEXTS = (
    "train on the teacher's texts instead: let it answer your requests with its own tools, and give"
    " the answers to a stage with objective sft"
)


def teacher_source(job: Job) -> str:
    """The folder or hub id of the stage's teacher.

    Raises InputError if the stage names none, or a folder that holds no model.
    """
    named = job.options.get("teacher")
    at = f"stage {job.stage.name}"
    if not named:
        raise InputError(
            "objective distill needs a teacher",
            where=at,
            allowed="teacher: a folder or a hub id, such as Qwen/Qwen3-8B",
        )
    path = path_from(job.folder, str(named))
    if (path / "adapter_config.json").is_file():
        return str(path.resolve())
    try:
        return model_source(job.folder, str(named))
    except InputError as error:
        what = error.faults[0].headline.removeprefix("model: ")
        raise InputError(what, where=f"{at}: teacher", allowed=error.faults[0].allowed) from None


def is_own_base(job: Job) -> bool:
    """Whether the teacher is the frozen base of the module that is trained: one copy is enough."""
    return (
        methods().update(job.stage.update).is_module
        and teacher_source(job) == job.base_model
        and job.options.get("teacher_quantization") == job.stage.quantization
    )


def teacher_digest(job: Job) -> str:
    """A digest of the teacher's files; of its name if it is one of the hub."""
    source = teacher_source(job)
    if Path(source).is_dir():
        return folder_digest(source)
    return hashlib.sha256(source.encode()).hexdigest()


def check_same_tokens(job: Job, tokenizer: Tokenizer) -> None:
    """Raise InputError if the teacher's tokenizer gives its tokens other numbers than the
    student's.
    """
    source = teacher_source(job)
    folder = Path(source)
    if (folder / "adapter_config.json").is_file() and not (
        folder / "tokenizer_config.json"
    ).is_file():
        source = str(read_adapter_config(folder).get("base_model_name_or_path"))
    if source == job.base_model:
        return
    other = read_tokenizer(job, source, "the teacher's tokenizer")
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    names = {number: token for token, number in theirs.items()}
    wrong = [
        token
        for token, number in mine.items()
        if theirs.get(token, number) != number or names.get(number, token) != token
    ]
    lacking = len(mine.keys() ^ theirs.keys())
    if not wrong and lacking <= MISSING_SHARE * len(mine):
        return
    example = f", for example {wrong[0]!r}" if wrong else ""
    raise InputError(
        f"the teacher {source} has another vocabulary ({len(theirs):,}"
        f" tokens) than the model that is trained ({len(mine):,}): {len(wrong):,} tokens have other"
        f" numbers{example}, and {lacking:,} are in one of them alone",
        where=f"stage {job.stage.name}",
        allowed="a teacher of the same model family",
        hint=TEXTS,
    )


def load_teacher(job: Job, device: Device) -> Any:
    """The teacher, frozen, without PEFT's wrapping.

    Raises InputError if its files cannot be read, or its module cannot be merged into its base.
    """
    source = base = teacher_source(job)
    # Nothing of it is trained, so that mixed precision needs no float32 weights of it.
    dtype = settings.autocast_dtype(job, device) or job.stage.weights_dtype
    stage = structs.replace(
        job.stage, quantization=job.options.get("teacher_quantization"), weights_dtype=dtype
    )
    own = replace(job, entry=structs.replace(job.entry, stage=stage))
    is_module = (Path(source) / "adapter_config.json").is_file()
    if is_module:
        config = read_adapter_config(Path(source))
        module, base = update_of(config), str(config.get("base_model_name_or_path"))
        if config.get("task_type") != "CAUSAL_LM" or module is None or not module.merges:
            raise InputError(
                f"{source} holds a module that cannot be merged into its base",
                where=f"stage {job.stage.name}: teacher",
                allowed="a LoRA or a whole model that writes",
            )
    teacher = load_frozen(own, device, source, base=base)
    return teacher.merge_and_unload() if is_module else teacher


# --------------------------------------------------------------------------- its answers

BLOCK = 32  # requests that are answered together


class Written(NamedTuple):
    """One answer of the teacher."""

    ids: list[int]
    ended: bool  # by a stop token, not by the limit


def answers_folder(job: Job, prompts: str) -> Path:
    """Where the answers are kept: a folder for these requests, this teacher and these settings.

    Args:
        prompts: A digest of them.
    """
    depends = {
        "prompts": prompts,
        "teacher": teacher_digest(job),
        "quantization": job.options.get("teacher_quantization"),
        "temperature": job.options["temperature"],
        "response_tokens": job.options["response_tokens"],
        "seed": job.stage.seed,
    }
    return job.run / "prepared" / f"{job.entry.name}-teacher-{digest_of(depends)[:16]}"


@dataclass(kw_only=True)
class Answering:
    """Answers blocks of requests with a model, which is loaded once the first is asked for."""

    job: Job
    tokenizer: Tokenizer
    load: Callable[[], Any]
    limit: int  # the longest answer, in tokens
    temperature: float
    model: Any = None

    def __call__(self, block: Sequence[Prompt], number: int) -> list[Written]:
        """The answers to the block of that number, which decides what is drawn."""
        from trainers.rollouts import Sampling
        from trainers.rollouts.transformers_engine import TransformersEngine, stop_ids
        from trainers.teachers.trainer import own_random_numbers

        device, seed = torch_device(self.job.plan.launch.device), self.job.stage.seed
        if self.model is None:
            with own_random_numbers(device, seed, -1):  # where answers are kept nothing is loaded
                self.model = self.load()
            enable_stop_tokens(self.model, self.tokenizer, set())
            board.count_from_now()
        model = self.model
        engine = TransformersEngine(
            lambda: nullcontext(model), models=lambda: [model], least=len(block)
        )
        sampling = Sampling(limit=self.limit, temperature=self.temperature, stops=stop_ids(model))
        with own_random_numbers(device, seed, -1 - number):
            found = engine.generate([list(prompt.prompt_ids) for prompt in block], sampling)
        return list(map(Written, found.ids, found.ended))


def written_answers(
    folder: Path,
    prompts: Sequence[Prompt],
    write: Callable[[Sequence[Prompt], int], Sequence[Written]],
    *,
    of: str = "the teacher",
) -> list[Written]:
    """An answer to each request; those that are kept, and new ones for the others: a file for each
    block of requests.

    Each process lets its own copy of the teacher answer its share of the blocks. They are not
    connected yet: they see each other's files. What is drawn depends on the seed and the number of
    the block alone, so that an interrupted run gets the answers of an unbroken one, and any number
    of processes those of one.

    Raises MachineNotReady if the disk does not take the answers, ConnectionLost if the main process
    fails or the launcher is gone.

    Args:
        write: Answers a block of requests; gets its number.
        of: Whose answers they are, for the progress line.
    """
    blocks = [prompts[start : start + BLOCK] for start in range(0, len(prompts), BLOCK)]
    files = [folder / f"{number}.json" for number in range(len(blocks))]

    def kept(number: int) -> list[Written] | None:
        known = kept_value(files[number], folder.name)
        return None if known is None else [Written(*one) for one in known]

    mine = range(process_rank(), len(blocks), process_count())
    with others_wait_for(folder) if is_main_process() else nullcontext():
        todo = [number for number in mine if kept(number) is None]
        known = BLOCK * (len(mine) - len(todo))
        with waiting(
            f"answers of {of}", total=BLOCK * len(mine), unit="answers", done=known
        ) as done:
            for number in todo:
                keep_value(files[number], folder.name, write(blocks[number], number))
                done(BLOCK)
        looks = (partial(kept, number) for number in range(len(blocks)))
        return [one for look in looks for one in wait_for(folder, look)]


def answered_row(prompt: Prompt, answer: Written, tokenizer: Tokenizer) -> Row:
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
    cut = sum(not one.ended for one in written)
    tokens = sum(len(one.ids) for one in written)
    return (
        f"the teacher wrote {len(written):,} answers of {tokens / max(1, len(written)):.0f} tokens"
        f" on average; {cut:,} are cut at response_tokens {limit:,}"
    )
