"""What `run.sh --set-up` downloads, so that a job needs no connection, and what it leaves out."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from advisor.extras.jobs import fetch as fetching
from advisor.extras.jobs.fetch import hub_names
from advisor.extras.jobs.pack import make_bundle
from advisor.ground.errors import MachineNotReady
from advisor.plan.read import read_plan
from tests.extras.jobs.project import TASKS, write_project

DPO = """\
  - {name: dpo, objective: dpo, update: lora, data: someone/pairs, start_from: sft}
"""


def test_what_the_hub_has_is_what_the_plan_names_and_the_folder_lacks(tmp_path):
    """Files and folders that are there are nobody's download."""
    path = write_project(tmp_path)
    path.write_text(path.read_text().replace("launch:", f"{DPO}launch:"))
    assert hub_names(read_plan(path), path) == [
        ("model", "Qwen/Qwen3-8B"), ("data set", "someone/pairs"),
    ]  # fmt: skip
    path = write_project(tmp_path / "other", model="base", data=TASKS)
    assert hub_names(read_plan(path), path) == []


def test_models_are_fetched_with_what_a_run_reads_and_weights_in_a_pickle_last(
    tmp_path, monkeypatch
):
    """The plan's revision counts; pickled weights are fetched only where there are no others."""
    path = write_project(tmp_path)
    path.write_text(path.read_text().replace("data:", "revision: abc\ndata:", 1))
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision, "*.bin" in allow_patterns, "*.safetensors" in allow_patterns))
        return str(tmp_path / "base" if weights else tmp_path)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download)
    )
    weights = True
    fetching.fetch(path)
    assert calls == [("Qwen/Qwen3-8B", "abc", False, True)]
    weights = False
    fetching.fetch(path)
    assert calls[1:] == [
        ("Qwen/Qwen3-8B", "abc", False, True),
        ("Qwen/Qwen3-8B", "abc", True, True),
    ]


def test_a_model_that_cannot_be_had_is_machine_not_ready(tmp_path, monkeypatch):
    """With its name and the way out."""

    def refuse(name, **more):
        raise OSError("401 Client Error")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=refuse))
    with pytest.raises(MachineNotReady, match=r"model Qwen/Qwen3-8B: .*401[^\n]*\n.*hf auth login"):
        fetching.fetch(write_project(tmp_path))


@pytest.mark.parametrize(("device", "code"), [("cpu", 0), ("cuda", 0), ("rocm", 4)])
def test_set_up_needs_no_gpu_and_downloads_once(tmp_path, device, code):
    """A login node has none, for an AMD GPU it is made by hand, and once is enough."""
    path = write_project(tmp_path, model="base", launch=f"{{device: {device}}}")
    folder = make_bundle(path, tmp_path / "a bundle").folder
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$*" >>"$LOG"\n')
    python.chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": os.environ["PATH"], "LOG": str(log)}
    if device != "rocm":
        environment["ADVISE_PYTHON"] = str(python)
    for _ in range(2):
        done = subprocess.run(
            ["bash", folder / "run.sh", "--set-up"], env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    if code == 0:
        asked = log.read_text().splitlines()
        assert asked.count("-P -m advisor.extras.jobs.fetch plan.yaml") == 1
        assert not any("advisor run" in line for line in asked)
        assert (folder / ".fetched").read_text().startswith(f"{folder}/hub\n")


def test_a_bundle_for_several_machines_says_how_each_is_started(tmp_path):
    """By the variables that `advise run` reads without a scheduler."""
    launch = "{device: cuda, processes: 8, nodes: 2, strategy: fsdp}"
    folder = make_bundle(write_project(tmp_path, launch=launch), tmp_path / "made").folder
    text = (folder / "README.txt").read_text()
    assert "NNODES=2 MASTER_ADDR=" in text
    assert "2 machines each with 8 NVIDIA GPUs" in text
