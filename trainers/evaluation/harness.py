"""Benchmarks of lm-evaluation-harness on a run's base or on its results, in a process of their own
that ends before, or begins after, a trainer holds the device.

Run: python -P -m trainers.evaluation.harness PLAN --run FOLDER --on base|STAGE [--on STAGE ...]

Each entry of the plan's `evaluation.tasks` is written down as soon as it is done, so that a stopped
call loses one entry at most. What goes wrong is in benchmarks/error.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, OutOfMemory
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import show_streams
from advisor.plan.benchmark_record import BASE, FOLDER, ModelScores, Score, Scored
from advisor.plan.benchmarks import (
    forget_others,
    limit_of,
    missing_tasks,
    needs_no_hub,
    read_scores,
    scores_key,
    scores_path,
    shown_task,
)
from advisor.plan.harness_tasks import harness_version, task_folders
from advisor.plan.model import Plan
from advisor.plan.paths import is_task_file, path_from
from advisor.plan.read import read_plan
from advisor.plan.record import ERROR, ErrorRecord, RunRecord
from trainers.evaluation.harness_scores import scores_of
from trainers.frame.files import make_folder, write_json
from trainers.frame.job import Job, make_job
from trainers.frame.loading import load_tokenizer
from trainers.frame.machine import quiet_libraries, torch_device, use_cores
from trainers.frame.out_of_memory import first_line, is_out_of_memory
from trainers.tools.results import (
    Result,
    load_results,
    load_whole,
    record_of,
    result_of,
)

# Requests that go through the model at once. On a GPU the harness finds what fits; a processor
# gains nothing from more.
CPU_BATCH, GPU_BATCH = 8, "auto"
RANDOM_SEED, OTHER_SEED = 0, 1234  # the harness's own: lm_eval/defaults.py
RAW_TEXT = "cpt"  # the objective that learns texts as they are, without a chat template


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.evaluation.harness",
        description="Run the benchmarks of a plan. `advise run` calls this.",
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--on", required=True, action="append", help="base, or a stage")
    given = parser.parse_args(argv)
    show_streams()
    run = given.run.resolve()
    try:
        make_folder(run / FOLDER)
        measure(read_plan(given.plan), given.plan.resolve().parent, run, given.on)
    except AdviseError as error:
        write_json(run / FOLDER / ERROR, ErrorRecord.of(error).to_dict())
        return error.exit_code
    return 0


def measure(plan: Plan, folder: Path, run: Path, names: Sequence[str]) -> None:
    """Ask each of these models what the plan's benchmarks ask, and write down the scores.

    Raises InputError for a benchmark that cannot be asked, OutOfMemory, MachineNotReady.

    Args:
        folder: What the plan's paths are relative to.
        names: `base`, or stages whose results are finished.
    """
    # First: these libraries read their settings as they are imported.
    quiet_harness()
    if needs_no_hub(plan, folder):
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    use_cores()
    quiet_libraries()
    record = record_of(run)
    board.folder = run
    harness = Harness(plan, folder, record)
    for name, model, tokenizer in models(plan, folder, run, record, names):
        board.label = "before training" if name == BASE else f"after training, {name}"
        harness.ask(run, name, model, tokenizer)


def quiet_harness() -> None:
    """Silence the harness's log and bars: requests are counted by `Asked`."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("evaluate").setLevel(logging.ERROR)


# --------------------------------------------------------------------------- the models


def models(
    plan: Plan, folder: Path, run: Path, record: RunRecord, names: Sequence[str]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, model, tokenizer) of each, in the form it is trained in; modules share their base."""
    device = torch_device(plan.launch.device)
    if BASE in names:
        job = base_job(plan, folder, run)
        tokenizer = load_tokenizer(job)
        with waiting("loading the model"):
            model = load_whole(base_result(job), job.base_model, device, **revision_of(job))
        yield BASE, model, tokenizer
        del model
    stages = [stage for name in names if (stage := record.stage(name)) is not None]
    results = [replace(result_of(run, record, stage), label=stage.name) for stage in stages]
    modules = [result for result in results if result.is_module]
    if modules:
        with waiting("loading the results"):
            loaded = load_results(modules, device)
        for result in modules:
            with loaded.use(result.label) as (model, tokenizer):
                yield result.label, model, tokenizer
        del loaded
    for result in results:
        if not result.is_module:
            with waiting("loading the result"):
                model = load_whole(result, str(result.folder), device)
            yield result.label, model, tokenizer_of(result)
            del model


def base_job(plan: Plan, folder: Path, run: Path) -> Job:
    """The last stage as if it began from the plan's model: its form is that of the results."""
    task = plan.tasks[0].name if plan.tasks else None
    job = make_job(plan, stage=plan.stages[-1].name, task=task, run=run, folder=folder)
    return replace(job, entry=replace(job.entry, starts_from=None, start_folder=None))


def base_result(job: Job) -> Result:
    """The plan's model, described as a result is."""
    stage = job.stage
    return Result(
        label=BASE,
        folder=Path(job.base_model),
        model=job.base_model,
        update=stage.update,
        quantization=stage.quantization,
        double_quantization=stage.double_quantization is not False,
        weights_dtype=stage.weights_dtype,
        attention="sdpa" if stage.attention == "auto" else stage.attention,
        trust_remote_code=job.plan.trust_remote_code,
    )


def revision_of(job: Job) -> dict[str, str]:
    """The revision of a model of the hub, as `from_pretrained` takes it."""
    is_here = Path(job.base_model).is_dir()
    return {} if is_here or job.plan.revision is None else {"revision": job.plan.revision}


def tokenizer_of(result: Result) -> Any:
    """The tokenizer that was saved with a result."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(result.folder), trust_remote_code=result.trust_remote_code
    )


def uses_template(plan: Plan, base_tokenizer: Any) -> bool:
    """Whether questions go through the chat template: the base has one of its own, and the last
    stage trains through it.

    A base without a template gets none, nor does its result: both are asked in the same words.
    """
    return bool(getattr(base_tokenizer, "chat_template", None)) and (
        plan.stages[-1].objective != RAW_TEXT
    )


# --------------------------------------------------------------------------- the benchmarks


class Harness:
    """The benchmarks of a plan, each loaded once for all models.

    Args:
        plan: With `evaluation`.
        folder: What its paths are relative to.
        record: The run.
    """

    def __init__(self, plan: Plan, folder: Path, record: RunRecord) -> None:
        self.plan, self.folder, self.record = plan, folder, record
        self.limit = limit_of(plan, record.max_steps)
        self.loaded: dict[str, Any] = {}

    def ask(self, run: Path, name: str, model: Any, tokenizer: Any) -> None:
        """Ask one model what it was not asked yet."""
        assert self.plan.evaluation is not None
        tasks = self.plan.evaluation.tasks
        before = read_scores(run, BASE)
        template = uses_template(self.plan, tokenizer) if name == BASE else before.chat_template
        found = read_scores(run, name)
        missing = missing_tasks(self.plan, self.folder, run, self.record, name)
        for task in tasks:
            if task not in missing:
                continue
            began_s = time.monotonic()
            with waiting(f"benchmark {shown_task(task)}"), explained(task, name):
                scores = self._scores(task, model, tokenizer, template=template)
            key = scores_key(self.plan, self.folder, self.record, name, task, limit=self.limit)
            done = Scored(key=key, seconds=time.monotonic() - began_s, scores=tuple(scores))
            found = ModelScores(
                chat_template=template,
                versions={"lm_eval": harness_version()},
                tasks=forget_others({**found.tasks, task: done}, tasks),
            )
            write_json(scores_path(run, name), found.to_dict())

    def _scores(self, task: str, model: Any, tokenizer: Any, *, template: bool) -> list[Score]:
        import lm_eval

        with open_null() as null, redirect_stdout(null):
            loaded = self._load(task)
            fix_chance(loaded["tasks"].values())
            results = lm_eval.evaluate(
                lm=asked_model(model, tokenizer),
                task_dict=loaded,
                limit=self.limit,
                log_samples=True,
                apply_chat_template=template,
                fewshot_as_multiturn=template,
            )
        return scores_of(results, task)

    def _load(self, task: str) -> Any:
        """The harness's tasks of an entry. Its relative data files are beside its own file."""
        if task not in self.loaded:
            from lm_eval.tasks import TaskManager

            if is_task_file(task):
                path = path_from(self.folder, task).resolve()
                manager = TaskManager(include_defaults=False)
                with chdir(path.parent):
                    self.loaded[task] = manager.load([str(path)])
            else:
                self.loaded[task] = named_tasks(task)
        return self.loaded[task]


def fix_chance(tasks: Iterable[Any]) -> None:
    """The seeds and the number of examples before a question as `lm-eval run` sets them, so that
    scores are those that it gives.
    """
    import random

    import numpy
    import torch

    random.seed(RANDOM_SEED)
    numpy.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    for task in tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=OTHER_SEED)


def named_tasks(name: str) -> Any:
    """A task, group or tag of the harness, by name.

    The harness reads all of its 14,000 files to find one; the folders that have the name are enough
    unless a group names others.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in task_folders(name)]
    try:
        return TaskManager(include_defaults=False, include_path=folders).load([name])
    except KeyError:
        return TaskManager().load([name])


def asked_model(model: Any, tokenizer: Any) -> Any:
    """The model as the harness takes it, with every answer counted on the screen."""
    from lm_eval.models.huggingface import HFLM

    class Asked(HFLM):
        """The harness's model of transformers, which shows how many requests are done."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._counted("answers scored", requests):
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._counted("texts scored", requests):
                return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._counted("answers written", requests):
                return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
            # The harness asks for its own bar here, whatever it was told above.
            return super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": True})

        @contextmanager
        def _counted(self, what: str, requests: Any) -> Iterator[None]:
            with waiting(what, total=len(requests), unit="requests") as done:
                self.set_cache_hook(Counted(done))
                yield

    tokenizer.padding_side = "left"
    on_cpu = model.device.type == "cpu"
    return Asked(
        pretrained=model, tokenizer=tokenizer, batch_size=CPU_BATCH if on_cpu else GPU_BATCH
    )


class Counted:
    """What the harness tells of each finished request; it is meant for a cache of answers."""

    def __init__(self, done: Any) -> None:
        self.done = done

    def add_partial(self, *_: Any) -> None:
        """One more is done."""
        self.done()


@contextmanager
def open_null() -> Iterator[Any]:
    """A stream for what the harness prints."""
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        yield null


@contextmanager
def explained(task: str, name: str) -> Iterator[None]:
    """An exception of the harness as an error that names the benchmark."""
    try:
        yield
    except AdviseError:
        raise
    except Exception as error:
        where = f"evaluation.tasks: {shown_task(task)}"
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"out of memory while the benchmark was asked: {first_line(error)}",
                where=where,
                hint="free memory on the device, or remove the benchmark with the longest texts",
            ) from None
        if isinstance(error, ConnectionError):
            raise MachineNotReady(
                f"its data set cannot be downloaded: {first_line(error)}",
                where=where,
                hint="check the connection, or remove the benchmark: a task file with data of this"
                " machine needs none",
            ) from None
        raise InputError(
            f"lm-evaluation-harness cannot run it: {type(error).__name__}: {first_line(error)}",
            where=where,
            hint="run it alone to see more: lm-eval run --model hf --model_args pretrained=MODEL"
            f" --tasks {task} --limit 2",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
