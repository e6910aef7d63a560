"""lm-evaluation-harness on a run's base or on its saved results, in a process that ends before, or
begins after, a trainer holds the device.

Run: python -P -m trainers.tools.harness RUN REQUEST

REQUEST is a JSON file: `{"limit": questions or null, "wanted": [{"name": "base" or a stage,
"task": a name of the harness or a file, "to": where the answer goes}, ...]}`, in the order of
models. Each answer is written as soon as it is there, so that a stopped call loses one at most.
What goes wrong is in RUN/benchmarks/error.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, OutOfMemory
from advisor.ground.files import PLAN_FILE, text_of
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import show_streams
from advisor.plan.entries import path_from
from advisor.plan.read import read_plan
from advisor.record.run import ERROR
from advisor.record.stage import ErrorRecord
from trainers.job.files import write_json
from trainers.job.job import Job, make_job
from trainers.job.libraries import first_line, lack_of_memory, quiet_libraries
from trainers.job.machine import torch_device, use_cores
from trainers.start.loading import load_base, load_tokenizer
from trainers.tools import results as saved
from trainers.tools.results import BASE

# Requests that go through the model at once. On a GPU the harness finds what fits; a processor
# gains nothing from more.
CPU_BATCH, GPU_BATCH = 8, "auto"
RAW_TEXT = "cpt"  # the objective that learns texts as they are, without a chat template
KEPT = ("results", "group_subtasks", "higher_is_better", "n-samples")  # of what it answers


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    run, request = map(Path, sys.argv[1:] if argv is None else argv)
    show_streams()
    try:
        answer(run.resolve(), json.loads(text_of(request)))
    except AdviseError as error:
        write_json(run / "benchmarks" / ERROR, ErrorRecord.of(error).to_dict())
        return error.exit_code
    return 0


def answer(run: Path, request: dict[str, Any]) -> None:
    """Ask each model what is wanted of it, and write the answers down.

    Questions go through the chat template if the base has one of its own, and the last stage trains
    through it. A base without a template gets none, nor does its result: both are asked in the same
    words.

    Raises InputError for a benchmark that cannot be asked, OutOfMemory, MachineNotReady.
    """
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")  # read as the library is imported
    use_cores()
    quiet_libraries()
    plan = read_plan(run / PLAN_FILE)
    task = plan.tasks[0].name if plan.tasks else None
    base = make_job(plan, stage=plan.stages[-1].name, task=task, run=run, folder=run)
    # As if the last stage began from the plan's model.
    base = replace(base, entry=structs.replace(base.entry, starts_from=None, start_folder=None))
    board.folder = run
    trains = base.stage.objective != RAW_TEXT
    template = trains and bool(getattr(load_tokenizer(base), "chat_template", None))
    asked, model = "", None
    for one in request["wanted"]:
        name, asks, began_s = one["name"], Path(one["task"]).name, time.monotonic()
        board.label = "before training" if name == BASE else f"after training, {name}"
        with waiting(f"benchmark {asks}"), explained(asks):
            if asked != name:
                model = None  # before the next one needs the memory
                asked, model = name, asked_model(base, name)
            results = evaluate(base, one["task"], model, template, request["limit"])
        told = {"chat_template": template, "version": version("lm_eval")}
        told |= {"seconds": time.monotonic() - began_s, "results": results}
        write_json(Path(one["to"]), told)


def asked_model(base: Job, name: str) -> Any:
    """The plan's model, or the saved result of a stage, as the harness takes it.

    It is loaded here, as it was trained: a base in 4 or 8 bits, which the harness cannot make, and
    with as many embeddings as it has, which the harness would cut to the tokenizer's.
    """
    from lm_eval.models.huggingface import HFLM

    device = torch_device(base.plan.launch.device)
    if name == BASE:
        model, tokenizer = load_base(base, device, new_head=True), load_tokenizer(base)
    else:
        record = saved.record_of(base.run)
        stage = record.stage(name)
        assert stage is not None
        result = saved.result_of(base.run, record, stage)
        model, tokenizer = saved.load_result(result, device), saved.load_tokenizer(result)
    size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)


def evaluate(base: Job, task: str, model: Any, template: bool, limit: int | None) -> dict[str, Any]:
    """What the harness answers of a benchmark, without the texts of its questions: KEPT, the lists
    of metrics, and of `samples` the number of the question, the filter and the metrics.

    Args:
        base: The last stage, from the plan's model.
        task: An entry of `evaluation.tasks`.
        model: As the harness takes it.
        template: Ask through the chat template.
        limit: Questions; None: all.
    """
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    path = path_from(base.run, task).resolve()
    is_file = task.endswith((".yaml", ".yml"))
    # Relative data files are beside the task's; what it prints is no answer of ours.
    with chdir(path.parent if is_file else Path.cwd()), redirect_stdout(sys.stderr):
        found = simple_evaluate(
            model=model,
            tasks=[str(path) if is_file else task],
            limit=limit,
            log_samples=True,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    kept = {key: found.get(key) for key in KEPT}
    kept["configs"] = {
        name: {"metric_list": one.get("metric_list")} for name, one in found["configs"].items()
    }
    kept["samples"] = {
        name: [
            {key: row[key] for key in ("doc_id", "filter", *row["metrics"]) if key in row}
            for row in rows
        ]
        for name, rows in found["samples"].items()
    }
    return dict(json.loads(json.dumps(kept, default=handle_non_serializable)))


@contextmanager
def explained(task: str) -> Iterator[None]:
    """An exception of the harness as an error that names the benchmark."""
    try:
        yield
    except AdviseError:
        raise
    except (Exception, SystemExit) as error:
        where = f"evaluation.tasks: {task}"
        if lacking := lack_of_memory(error):
            raise OutOfMemory(
                f"out of memory while the benchmark was asked: {lacking}",
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
            hint="`lm-eval ls tasks` lists its names, `lm-eval validate --tasks` checks some",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
