"""lm-evaluation-harness's own command on a run's base or on its saved results, in a process that
ends before, or begins after, a trainer holds the device.

Run: python -P -m trainers.tools.harness RUN REQUEST

REQUEST is a JSON file: `{"limit": questions or null, "wanted": [{"name": "base" or a stage,
"task": a name of the harness or a file, "to": where the answer goes}, ...]}`. Each answer is
written as soon as it is there, so that a stopped call loses one at most. What goes wrong is in
RUN/benchmarks/error.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, OutOfMemory
from advisor.ground.files import PLAN_FILE
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import show_streams
from advisor.methods import methods
from advisor.plan.entries import path_from
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.record.run import ERROR, RunRecord
from advisor.record.stage import ErrorRecord
from trainers.job.files import write_json
from trainers.job.job import Job, make_job
from trainers.job.libraries import quiet_libraries
from trainers.job.machine import torch_device, use_cores
from trainers.start.loading import load_tokenizer
from trainers.step.out_of_memory import first_line, is_out_of_memory
from trainers.tools.results import record_of, result_of

BASE = "base"
# Requests that go through the model at once. On a GPU the harness finds what fits; a processor
# gains nothing from more.
CPU_BATCH, GPU_BATCH = "8", "auto"
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
    base = base_job(plan, run)
    template = through_template(base)
    for one in request["wanted"]:
        name, task, began_s = one["name"], Path(one["task"]).name, time.monotonic()
        board.label = "before training" if name == BASE else f"after training, {name}"
        model = base_arguments(base) if name == BASE else result_arguments(base, record, name)
        with waiting(f"benchmark {task}"), explained(task):
            results = evaluate(base, one["task"], model, template, request["limit"])
        told = {"chat_template": template, "version": version("lm_eval")}
        told |= {"seconds": time.monotonic() - began_s, "results": results}
        write_json(Path(one["to"]), told)


def evaluate(
    base: Job, task: str, model: dict[str, Any], template: bool, limit: int | None
) -> dict[str, Any]:
    """What `lm-eval run` writes of a benchmark, without the texts of its questions.

    Args:
        base: The last stage, from the plan's model.
        task: An entry of `evaluation.tasks`.
        model: The harness's arguments of its model.
        template: Ask through the chat template.
        limit: Questions; None: all.
    """
    from lm_eval.__main__ import cli_evaluate
    from transformers import PreTrainedModel

    device = torch_device(base.plan.launch.device)
    path = path_from(base.run, task).resolve()
    is_file = task.endswith((".yaml", ".yml"))
    with TemporaryDirectory() as out:
        command = [
            *("lm-eval", "run", "--model", "hf", "--model_args", json.dumps(model)),
            *("--tasks", str(path) if is_file else task, "--device", str(device)),
            *("--batch_size", CPU_BATCH if device.type == "cpu" else GPU_BATCH),
            *("--output_path", out, "--log_samples"),
            *(() if limit is None else ("--limit", str(limit))),
            *(("--apply_chat_template", "--fewshot_as_multiturn", "true") if template else ()),
        ]
        # Relative data files are beside the task's; what it prints is no answer of ours.
        here = path.parent if is_file else Path.cwd()
        # No result has tokens of its own: the harness would cut a padded vocabulary.
        as_it_is = patch.object(PreTrainedModel, "resize_token_embeddings")
        called = patch.object(sys, "argv", command)
        with chdir(here), redirect_stdout(sys.stderr), called, as_it_is:
            cli_evaluate()
        return written(Path(out))


def written(out: Path) -> dict[str, Any]:
    """`results`, `configs` (the lists of metrics), `group_subtasks`, `higher_is_better`,
    `n-samples`, and of `samples` the number of the question, the filter and the metrics.
    """
    (file,) = out.rglob("results_*.json")
    stamp = file.stem.removeprefix("results_")  # another task's name may begin with this one's
    found = json.loads(file.read_text("utf-8"))
    kept = ("results", "group_subtasks", "higher_is_better", "n-samples")
    plain = {key: found.get(key) for key in kept}
    plain["configs"] = {
        name: {"metric_list": one.get("metric_list")} for name, one in found["configs"].items()
    }
    samples: dict[str, list[dict[str, Any]]] = {}
    for name in found["configs"]:
        for lines in out.rglob(f"samples_{name}_{stamp}.jsonl"):
            rows = map(json.loads, lines.read_text("utf-8").splitlines())
            samples[name] = [
                {key: one[key] for key in ("doc_id", "filter", *one["metrics"]) if key in one}
                for one in rows
            ]
    return {**plain, "samples": samples}


# --------------------------------------------------------------------------- the models


def base_job(plan: Plan, run: Path) -> Job:
    """The last stage as if it began from the plan's model."""
    task = plan.tasks[0].name if plan.tasks else None
    job = make_job(plan, stage=plan.stages[-1].name, task=task, run=run, folder=run)
    return replace(job, entry=replace(job.entry, starts_from=None, start_folder=None))


def through_template(base: Job) -> bool:
    """Whether questions go through the chat template: the base has one of its own, and the last
    stage trains through it.

    A base without a template gets none, nor does its result: both are asked in the same words.
    """
    trains = base.stage.objective != RAW_TEXT
    return trains and bool(getattr(load_tokenizer(base), "chat_template", None))


def base_arguments(base: Job, source: str | None = None) -> dict[str, Any]:
    """The harness's arguments of the plan's model, or of another: in the dtype of the stage. A base
    that trains in 4 or 8 bits is asked in that dtype too, since the harness cannot make them.
    """
    source = source or base.base_model
    found: dict[str, Any] = {
        "pretrained": source,
        "dtype": base.stage.weights_dtype,
        "trust_remote_code": base.plan.trust_remote_code,
    }
    if base.plan.template:
        found["chat_template_args"] = dict(base.plan.template)
    if base.plan.revision is not None and not Path(source).is_dir():
        found["revision"] = base.plan.revision
    if base.stage.quantization and torch_device(base.plan.launch.device).type == "cuda":
        found["parallelize"] = True  # what does not fit on the device waits on the host
    return found


def result_arguments(base: Job, record: RunRecord, name: str) -> dict[str, Any]:
    """The same of the saved result of a stage."""
    stage = record.stage(name)
    assert stage is not None
    result = result_of(base.run, record, stage)
    folder = str(result.folder)
    if not result.is_module:
        return base_arguments(base, folder)
    if imports := methods().update(result.update).imports:
        import_module(imports)  # registers the method with PEFT
    return {**base_arguments(base, result.model), "peft": folder, "tokenizer": folder}


@contextmanager
def explained(task: str) -> Iterator[None]:
    """An exception of the harness as an error that names the benchmark."""
    try:
        yield
    except AdviseError:
        raise
    except (Exception, SystemExit) as error:
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
