"""Two steps by the tool itself, in its own environment, begin with the loss of `advise run`."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from advisor.extras.other_tools.files import write_files
from benchmarks.side_by_side import tools
from tests.conftest import ROOT

pytestmark = pytest.mark.long

ROWS = [
    {"prompt": f"What is {a} plus {a}?", "completion": f"{a} plus {a} is {2 * a}."}
    for a in range(8)
]
AXOLOTL = os.environ.get("ADVISE_AXOLOTL")  # a Python that has Axolotl
ENVIRONMENT = {
    **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT), "DISABLE_VERSION_CHECK": "1",
}  # fmt: skip


def plan_of(folder, model, **keys):
    """All rows in one step, so that their order makes no difference."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    stage = {
        "name": "sft", "objective": "sft", "update": "lora", "rank": 16, "alpha": 32,
        "learning_rate": 3e-4, "weights_dtype": "float32", "precision": "pure", "warmup": 0.0,
        "micro_batch_size": len(ROWS), "seq_len": 256, "max_steps": 2, "holdout": 0.0,
        "truncation": "truncate", **keys,
    }  # fmt: skip
    plan = {
        "version": 1, "name": "two", "model": str(model), "data": {"path": "rows.jsonl"},
        "stages": [{key: value for key, value in stage.items() if value is not None}],
        "launch": {"device": "cpu"},
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def run(command, folder):
    """Its output, checked."""
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def loss_of_theirs(tool_id, path):
    """The first loss that the tool logs, at its own start command's file."""
    folder = path.parent / tool_id
    job = write_files(tool_id, path, folder, only=None).jobs[0]
    program = (
        [str(Path(sys.executable).with_name("trl")), "sft", "--config", job.file]
        if tool_id == "trl"
        else [tools.llama_factory_command(), "train", job.file]
    )
    run(program, folder)
    states = sorted((folder / "out").glob("checkpoint-*/trainer_state.json"))
    history = json.loads(states[-1].read_text())["log_history"]
    return next(line["loss"] for line in history if "loss" in line)


@pytest.mark.parametrize("tool_id", ["trl", "llamafactory"])
def test_the_first_loss_of_an_exported_file_is_ours(tool_id, tmp_path, smollm):
    """Where every token is learned, the same tokens are learned by both."""
    model = tools.in_float32(smollm, tmp_path / "model")
    path = plan_of(tmp_path, model, loss_on="all")
    command = [sys.executable, "-m", "advisor", "run", path.name, "--no-judge", "--output", "run"]
    run(command, tmp_path)
    ours = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    if tool_id == "llamafactory":
        # transformers divides by all labels; the first of each row is one, and is never predicted.
        tokens = sum(len(made.input_ids) for made in rows_as_ours(model))
        ours *= (tokens - len(ROWS)) / tokens
    assert math.isclose(loss_of_theirs(tool_id, path), ours, abs_tol=2e-3)


def rows_as_ours(model):
    """The rows as a run trains them."""
    from transformers import AutoTokenizer

    from advisor.data.example import Example, Message
    from trainers.rows.conversation import answer_row
    from trainers.rows.template import Templater

    templater = Templater(AutoTokenizer.from_pretrained(model))
    for number, row in enumerate(ROWS, 1):
        turns = (Message("user", row["prompt"]), Message("assistant", row["completion"]))
        yield answer_row(Example(row=number, messages=turns), templater)


@pytest.mark.parametrize("tool_id", ["trl", "llamafactory"])
def test_answers_are_learned_with_what_the_template_writes_behind_them(tool_id, tmp_path, smollm):
    """The one difference that the file names: the line end behind each answer is learned too."""
    import torch
    from transformers import AutoModelForCausalLM

    model = tools.in_float32(smollm, tmp_path / "model")
    path = plan_of(tmp_path, model)
    network = AutoModelForCausalLM.from_pretrained(model)
    total, count = 0.0, 0
    for made in rows_as_ours(model):
        labels = [*made.labels[:-1], made.input_ids[-1]]
        assert made.labels[-1] == -100  # a run leaves the line end out
        kept = sum(label != -100 for label in labels)
        with torch.no_grad():
            ids = torch.tensor([list(made.input_ids)])
            loss = network(input_ids=ids, labels=torch.tensor([labels])).loss
        total, count = total + loss.item() * kept, count + kept
    assert math.isclose(loss_of_theirs(tool_id, path), total / count, abs_tol=2e-3)


@pytest.mark.skipif(not AXOLOTL, reason="ADVISE_AXOLOTL names no Python with Axolotl")
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"loss_on": "all"},
        {"quantization": "nf4"},
        {"update": "full", "rank": None, "alpha": None},
    ],
)
def test_axolotl_takes_every_key_of_an_exported_file(keys, tmp_path):
    """Its own model accepts the values; keys that it does not know it would drop without a word."""
    path = plan_of(tmp_path, "org/Model-1B", **keys)
    job = write_files("axolotl", path, tmp_path / "out", only=None).jobs[0]
    code = (
        "import sys, yaml; from axolotl.utils.schemas.config import AxolotlInputConfig as C;"
        "v = yaml.safe_load(open(sys.argv[1])); C(**v);"
        "print([key for key in v if key not in C.model_fields])"
    )
    done = run([AXOLOTL, "-c", code, job.file], tmp_path / "out")
    assert done.stdout.strip().splitlines()[-1] == "[]"
