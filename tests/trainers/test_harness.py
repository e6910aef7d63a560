"""Benchmarks of a run by a stand-in; extras/benchmarks/test_benchmarks.py asks the real library."""

import json
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM

from tests.trainers.test_results import plan_of
from trainers.tools import harness


@pytest.fixture
def asked(monkeypatch):
    """What a stand-in of lm-evaluation-harness was given: models, and tasks with their folder."""
    seen = SimpleNamespace(models=[], tasks=[])

    def load(pretrained, tokenizer, batch_size):
        seen.models.append(pretrained)
        return pretrained

    def evaluate(model, tasks, **_):
        seen.tasks.append((tasks[0], harness.Path.cwd()))
        row = {"doc_id": 0, "filter": "none", "metrics": ["acc"], "acc": 1.0, "doc": "a question"}
        return {
            "results": {"a": {"acc,none": torch.tensor(1.0).numpy().max()}},
            "configs": {"a": {"metric_list": None, "doc_to_text": "..."}},
            "samples": {"a": [row]},
        }

    for name, parts in {
        "lm_eval": {"simple_evaluate": evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": load},
        "lm_eval.utils": {"handle_non_serializable": float},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**parts))
    monkeypatch.setattr(harness, "version", lambda name: "0")
    return seen


def test_a_model_is_loaded_once_for_all_benchmarks_as_it_is(asked, tiny_model, tmp_path):
    """A padded vocabulary stays, a task file finds its data, and answers have no question texts."""
    padded = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = padded.config.vocab_size + 24
    padded.resize_token_embeddings(rows)
    shutil.copytree(tiny_model, tmp_path / "model")
    padded.save_pretrained(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    record = {"schema_version": 1, "status": "done", "model": "m", "stages": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, files = asked_for(tmp_path, tmp_path / "model", "arc_easy", "tasks/own.yaml")
    assert code == 0
    (model,) = asked.models
    assert model.get_input_embeddings().weight.shape[0] == rows
    own = tmp_path / "tasks" / "own.yaml"
    assert [task for task, _ in asked.tasks] == ["arc_easy", str(own)]
    assert asked.tasks[1][1] == own.parent
    for file in files:
        told = json.loads(file.read_text())["results"]
        assert told["results"] == {"a": {"acc,none": 1.0}}
        (row,) = told["samples"]["a"]
        assert row == {"doc_id": 0, "filter": "none", "acc": 1.0}


def asked_for(folder, model, *tasks):
    """Benchmarks of the base of a run in this folder: the exit code, and the file of each answer."""
    (folder / "plan.yaml").write_text(plan_of(model, more="launch: {device: cpu}"))
    files = [folder / "benchmarks" / f"{number}.json" for number in range(len(tasks))]
    wanted = [
        {"name": "base", "task": task, "to": str(file)}
        for task, file in zip(tasks, files, strict=True)
    ]
    (folder / "request.json").write_text(json.dumps({"limit": None, "wanted": wanted}))
    return harness.main([str(folder), str(folder / "request.json")]), files


def test_what_the_library_raises_names_the_benchmark(asked, tiny_model, tmp_path, monkeypatch):
    """In error.json, with exit code 2."""
    refuse = Mock(side_effect=KeyError("no_such"))
    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", refuse)
    assert asked_for(tmp_path, tiny_model, "arc_easy")[0] == 2
    said = json.loads((tmp_path / "benchmarks" / "error.json").read_text())
    assert said["what"].startswith("evaluation.tasks: arc_easy: lm-evaluation-harness cannot run")
