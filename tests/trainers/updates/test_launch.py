"""`advise run` trains adapters and prefixes from plan to an answer, and says what can and cannot be
done with them.
"""

import shlex
import subprocess

import pytest

from advisor.estimate.spec import run_of_spec
from advisor.launch import Options, run_plan
from advisor.render.report import write_report
from advisor.render.result_commands import ask_command, served_stages
from advisor.situation.models import model_shape
from tests.trainers.runs import chat, write_rows

PLAN = """\
name: shop
model: MODEL
data: {path: train.jsonl}
stages:
  - {name: sft, objective: sft, update: UPDATE, learning_rate: 2e-2, max_steps: 10, micro_batch_size: 2, seq_len: 128, holdout: 0.1}
"""
KEYS = {
    "adapter": {"bottleneck": 64, "placement": "pfeiffer"},
    "prefix": {"prefix_tokens": 30},
}  # the defaults


@pytest.mark.slow
@pytest.mark.parametrize("update", KEYS)
def test_a_real_run_from_plan_to_an_answer(update, tmp_path, tiny_model, monkeypatch):
    """It trains, passes its checks, writes a report; the printed line answers; the estimate counts
    the parameters that were trained.
    """
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = (chat(f"Where is {n}?", f"Your parcel {n} is in the red van.") for n in range(40))
    write_rows(tmp_path / "train.jsonl", rows)
    plan = PLAN.replace("MODEL", str(tiny_model)).replace("UPDATE", update)
    (tmp_path / "plan.yaml").write_text(plan)
    done = run_plan("plan.yaml", Options(on_end=write_report))
    stage = done.record.stages[0]
    assert done.status == "done"
    assert stage.loss_last < stage.loss_first
    shape, _ = model_shape(str(tiny_model))
    assert shape is not None
    run = run_of_spec({"update": update, **KEYS[update]}, shape)
    assert done.record.resolved["sft"].trainable_parameters == run.trainable
    assert not served_stages(done.record)
    ask = ask_command(str(done.folder / stage.folder), stage.update)
    answer = subprocess.run(shlex.split(ask), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    report = (done.folder / "report.html").read_text()
    assert "cannot be merged, and vLLM and Ollama cannot load it" in report
    card = (done.folder / "stages" / "sft" / "README.md").read_text()
    assert "import advisor.peft_adapter" in card
