"""Benchmarks of lm-evaluation-harness on a run's base or on its results, in a process of their own
that ends before, or begins after, a trainer holds the device.

Run: python -P -m trainers.tools.harness RUN REQUEST

REQUEST is a JSON file: `{"limit": questions or null, "wanted": [{"name": "base" or a stage,
"task": a name of the harness or a file, "to": where the answer goes}, ...]}`. Each answer is
written as soon as it is there, so that a stopped call loses one at most. What goes wrong is in
RUN/benchmarks/error.json.

The harness's own command is not used: it resizes the embeddings of a padded vocabulary, and cannot
load a 4-bit base with transformers 5.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, OutOfMemory
from advisor.ground.files import PLAN_FILE
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import show_streams
from advisor.plan.entries import path_from
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.record.run import ERROR, RunRecord
from advisor.record.stage import ErrorRecord
from trainers.job.files import write_json
from trainers.job.job import Job, make_job
from trainers.job.machine import quiet_libraries, torch_device, use_cores
from trainers.start.loading import load_tokenizer
from trainers.step.out_of_memory import first_line, is_out_of_memory
from trainers.tools.results import Result, load_results, load_whole, record_of, result_of

BASE = "base"
# Requests that go through the model at once. On a GPU the harness finds what fits; a processor
# gains nothing from more.
CPU_BATCH, GPU_BATCH = 8, "auto"
RAW_TEXT = "cpt"  # the objective that learns texts as they are, without a chat template


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    run, request = map(Path, sys.argv[1:] if argv is None else argv)
    show_streams()
    try:
        answer(run.resolve(), json.loads(request.read_text("utf-8")))
    except AdviseError as error:
        write_json(run / "benchmarks" / ERROR, ErrorRecord.of(error).to_dict())
        return error.exit_code
    return 0


def answer(run: Path, request: dict[str, Any]) -> None:
    """Ask each model what is wanted of it, and write the answers down.

    Raises InputError for a benchmark that cannot be asked, OutOfMemory, MachineNotReady.
    """
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")  # read as the library is imported
    use_cores()
    quiet_libraries()
    plan, record = read_plan(run / PLAN_FILE), record_of(run)
    board.folder = run
    template: bool | None = None
    wanted = request["wanted"]
    for name, model, tokenizer in models(plan, run, record, {one["name"] for one in wanted}):
        board.label = "before training" if name == BASE else f"after training, {name}"
        if template is None:
            template = asked_through_template(plan, run, name, tokenizer)
        for one in wanted:
            if one["name"] != name:
                continue
            began_s = time.monotonic()
            task = Path(one["task"]).name
            with waiting(f"benchmark {task}"), explained(task):
                results = evaluate(one["task"], run, model, tokenizer, template, request["limit"])
            told = {"chat_template": template, "version": version("lm_eval")}
            told |= {"seconds": time.monotonic() - began_s, "results": results}
            write_json(Path(one["to"]), told)


def asked_through_template(plan: Plan, run: Path, name: str, tokenizer: Any) -> bool:
    """Whether questions go through the chat template: the base has one of its own, and the last
    stage trains through it.

    A base without a template gets none, nor does its result: both are asked in the same words.
    """
    if name != BASE:
        before = sorted((run / "benchmarks" / BASE).glob("*.json"))
        return any(json.loads(one.read_text("utf-8"))["chat_template"] for one in before)
    return bool(getattr(tokenizer, "chat_template", None)) and (
        plan.stages[-1].objective != RAW_TEXT
    )


def evaluate(
    task: str, run: Path, model: Any, tokenizer: Any, template: bool, limit: int | None
) -> dict[str, Any]:
    """What the harness answers, without the texts of its questions: `results`, `configs` (the
    lists of metrics), `group_subtasks`, `higher_is_better`, `n-samples`, and of `samples` the
    number of the question, the filter and the metrics.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    tokenizer.padding_side = "left"
    batch = CPU_BATCH if model.device.type == "cpu" else GPU_BATCH
    path = path_from(run, task).resolve()
    is_file = task.endswith((".yaml", ".yml"))
    with chdir(path.parent if is_file else Path.cwd()):  # relative data files are beside the task's
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
            tasks=[str(path) if is_file else task],
            limit=limit,
            log_samples=True,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    kept = ("results", "group_subtasks", "higher_is_better", "n-samples")
    configs = {
        name: {"metric_list": one.get("metric_list")} for name, one in found["configs"].items()
    }
    samples = {
        name: [
            {key: one[key] for key in ("doc_id", "filter", *one["metrics"]) if key in one}
            for one in rows
        ]
        for name, rows in found["samples"].items()
    }
    plain = {key: found.get(key) for key in kept} | {"configs": configs, "samples": samples}
    return dict(json.loads(json.dumps(plain, default=str)))


# --------------------------------------------------------------------------- the models


def models(
    plan: Plan, run: Path, record: RunRecord, names: set[str]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, model, tokenizer) of each, in the form it is trained in; modules share their base."""
    device = torch_device(plan.launch.device)
    if BASE in names:
        job = base_job(plan, run)
        tokenizer = load_tokenizer(job)
        with waiting("loading the model"):
            model = load_whole(base_result(job), job.base_model, device, **revision_of(job))
        yield BASE, model, tokenizer
        del model
    stages = [stage for stage in record.stages if stage.name in names]
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


def base_job(plan: Plan, run: Path) -> Job:
    """The last stage as if it began from the plan's model: its form is that of the results."""
    task = plan.tasks[0].name if plan.tasks else None
    job = make_job(plan, stage=plan.stages[-1].name, task=task, run=run, folder=run)
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


@contextmanager
def explained(task: str) -> Iterator[None]:
    """An exception of the harness as an error that names the benchmark."""
    try:
        yield
    except AdviseError:
        raise
    except Exception as error:
        where = f"evaluation.tasks: {task}"
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
            hint="`lm-eval ls tasks` lists its names, `lm-eval validate --tasks NAME` checks one",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
