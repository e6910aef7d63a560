"""The vLLM server of a stage is checked first, and started, waited for and ended with it."""

import json
import os
import time

import pytest
from msgspec.structs import replace

from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.launch import Options, run_plan
from advisor.launch.call import choose_gpus
from advisor.launch.checks import server as server_check
from advisor.launch.generation_server import LOG, server_needs_of, serving
from advisor.plan.model import Launch, Plan, PlanData, Stage, VLLMServer
from tests.launch.conftest import ROOT, call_of, gpu, machine, write_rows
from tests.trainers.alignment import REWARD
from tests.trainers.rollouts.vllm_stand_in import write_environment

# Answers /health and no more, and writes down how it was started.
HEALTHY = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
given = sys.argv[1:]
seen = {"arguments": given, "environment": dict(os.environ), "process": os.getpid()}
open("OUT", "w").write(json.dumps(seen))
http.server.HTTPServer(("127.0.0.1", int(given[given.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The plans' paths start from this folder."""
    monkeypatch.chdir(tmp_path)


def plan_of(*, device="cpu", processes=1, nodes=1, **server):
    stage = Stage(
        name="grpo", objective="grpo", update="lora", learning_rate=1e-5, seq_len=1024,
        options={"rollouts": "vllm", "rank": 24, "response_tokens": 64},
    )  # fmt: skip
    launch = Launch(device=device, processes=processes, nodes=nodes, vllm=VLLMServer(**server))
    return Plan(model="owner/model", data=PlanData(path="x.jsonl"), stages=(stage,), launch=launch)


INSTEAD = "--set stages.grpo.rollouts=transformers"

TWO = {"device": "cuda", "processes": 2, "gpus": 2}

UNREACHED = (
    "2 machines, and its vLLM server is one that only the first of them reaches",
    "launch.vllm.url=http://HOST:8000",
)


@pytest.mark.parametrize(
    ("version", "server", "gpus", "words"),
    [
        (None, {}, 0, ("the vLLM of PYTHON is missing |  | PYTHON -m pip install", INSTEAD)),
        ("0.9.1", {}, 0, ("is version 0.9.1, and 0.22 is the oldest that works", INSTEAD)),
        ("0.33.0", {}, 0, ()),
        ("0.33.0", {"python": "nowhere/python"}, 0,
         ("launch.vllm.python: FOLDER/nowhere/python is no program",)),
        ("0.33.0", TWO, 3, ("2 GPUs for training and 2 for the vLLM server, and 3 can be used",
                            "launch.vllm.gpus=0")),
        ("0.33.0", TWO, 4, ()),
        ("0.33.0", {"url": "http://127.0.0.1:9"}, 0,
         ("stage grpo: the vLLM server at http://127.0.0.1:9 does not answer",
          "vllm serve owner/model --max-model-len 1024", "--max-lora-rank 32")),
        # One that is started listens on its own machine; so does one by that machine's own address.
        ("0.33.0", {"nodes": 2}, 0, UNREACHED),
        ("0.33.0", {"nodes": 2, "url": "http://localhost:8000"}, 0, UNREACHED),
    ],
)  # fmt: skip
def test_what_a_server_lacks_is_said_before_anything_is_loaded(
    tmp_path, version, server, gpus, words
):
    """With what to install, or what to use instead."""
    python = str(write_environment(tmp_path / "env", ROOT, version=version))
    plan = plan_of(**({} if "url" in server else {"python": python}) | server)
    hardware = machine(*(gpu(n, 70) for n in range(gpus)))
    faults = server_check.check(call_of(plan, hardware=hardware, output=tmp_path / "run")).lacking
    assert len(faults) == bool(words)
    for fault in faults:
        text = f"{fault.headline} | {fault.allowed} | {fault.hint}"
        for told in words:
            assert told.replace("PYTHON", python).replace("FOLDER", str(tmp_path)) in text


def test_the_server_gets_the_gpus_that_training_leaves():
    """Training takes the GPUs with most free memory, the server the next; or it shares theirs."""
    hardware = machine(*(gpu(n, 20 - n) for n in range(4)))
    plan = plan_of(python="p", device="cuda", processes=2, gpus=1)
    chosen = choose_gpus(plan, [], hardware, {})
    assert chosen.environment == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}
    assert chosen.server == {"CUDA_VISIBLE_DEVICES": "GPU-2"}
    shared = replace(plan, launch=replace(plan.launch, vllm=VLLMServer(python="p", gpus=0)))
    assert choose_gpus(shared, [], hardware, {}).server == chosen.environment


def run_server(tmp_path, code, **keys):
    plan = plan_of(python=str(write_environment(tmp_path / "env", ROOT, code=code)), **keys)
    (tmp_path / "run").mkdir()
    said = []
    call = call_of(plan, output=tmp_path / "run")
    shown = {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    return said, serving(call.run, call.left[0], gpus=shown, say=said.append)


def test_a_server_is_started_for_the_stage_and_ended_after_it(tmp_path, monkeypatch):
    """On this machine alone, with its GPUs, without our packages and without telemetry."""
    out = tmp_path / "seen.json"
    monkeypatch.setenv("PYTHONPATH", "ours")
    said, server = run_server(tmp_path, HEALTHY.replace("OUT", str(out)), timeout_s=60)
    with server as url:
        seen = json.loads(out.read_text())
        os.kill(seen["process"], 0)
    assert url in said[0]
    arguments = " ".join(seen["arguments"])
    assert arguments.startswith("serve owner/model ")
    port = url.rpartition(":")[2]
    for pair in (
        "--host 127.0.0.1", f"--port {port}", "--max-model-len 1024", "--max-lora-rank 32",
        "--logprobs-mode processed_logprobs",
    ):  # fmt: skip
        assert f" {pair} " in f"{arguments} "
    wanted = {
        "CUDA_VISIBLE_DEVICES": "GPU-7", "PYTHONPATH": str(tmp_path / "env"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    assert seen["environment"] | wanted == seen["environment"]
    with pytest.raises(ProcessLookupError):
        os.kill(seen["process"], 0)


@pytest.mark.parametrize(
    ("code", "timeout_s", "expected"),
    [
        ("sys.exit('no GPU found')", 60, "ended with code 1: no GPU found"),
        ("import time; print('compiling', flush=True); time.sleep(60)", 1.5,
         r"was not ready within 1.5 s \(launch.vllm.timeout_s\): compiling"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_start_is_explained(code, timeout_s, expected, tmp_path):
    """With the last lines of its log, and where the rest is."""
    began = time.monotonic()
    _, server = run_server(tmp_path, code, timeout_s=timeout_s)
    with pytest.raises(MachineNotReady, match=expected) as error, server:
        pass
    assert str(tmp_path / "run" / LOG) in str(error.value)
    assert time.monotonic() - began < 60


def test_what_a_server_serves_is_what_the_stage_starts_from(tmp_path):
    """The model, a stage that was trained whole, or the base below an adapter."""
    plan = plan_of(url="http://127.0.0.1:9")
    rest = plan.stages[0]
    plan = replace(plan, stages=(rest, replace(rest, name="more", start_from="grpo")))
    run = call_of(plan, output=tmp_path / "run").run
    first, second = run.entries
    assert server_needs_of(run, first).model == "owner/model"
    folder = run.folder / "stages" / "grpo"
    folder.mkdir(parents=True)
    assert server_needs_of(run, second).model == str(folder)
    config = {"base_model_name_or_path": "owner/model", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert server_needs_of(run, second).model == "owner/model"
    other, config["base_model_name_or_path"] = tmp_path / "other", str(tmp_path)
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps(config))
    plan = replace(plan, stages=(replace(rest, start_from="other"),))
    run = call_of(plan, output=tmp_path / "run").run
    assert server_needs_of(run, run.entries[0]).model == str(tmp_path)


DIES = """
import os
from pathlib import Path
import tests.trainers.rollouts.vllm_stand_in as stand_in
flag = Path("DIES")
real = stand_in.StandIn.completions
def completions(self, body):
    if flag.exists() and self.asked > 4:
        flag.unlink()
        os._exit(9)
    return real(self, body)
stand_in.StandIn.completions = completions
"""


@pytest.mark.slow
def test_a_run_starts_its_server_and_resumes_after_it_died(tmp_path, monkeypatch, tiny_model):
    """It trains with the server's answers; when that dies, the next call goes on with a new one."""
    pytest.importorskip("trl")
    (tmp_path / "own.py").write_text(REWARD)
    rows = [{"prompt": f"Where is parcel {n}?", "completion": f"In van {n}."} for n in range(16)]
    write_rows(tmp_path / "train.jsonl", rows)
    dies = tmp_path / "dies"
    dies.touch()
    python = write_environment(tmp_path / "env", ROOT, code=DIES.replace("DIES", str(dies)))
    (tmp_path / "plan.yaml").write_text(
        f"model: {tiny_model}\ndata: {{path: train.jsonl}}\nstages:\n"
        "  - {name: grpo, objective: grpo, update: lora, rank: 4, learning_rate: 1e-2,"
        " max_steps: 4, save_steps: 1, micro_batch_size: 2, seq_len: 96, holdout: 0.0,"
        " response_tokens: 6, generations: 4, reward: 'own.py:score', rollouts: vllm}\n"
        f"launch: {{vllm: {{python: {python}, timeout_s: 120}}}}\n"
    )
    with pytest.raises(TrainingFailed, match=r"stage grpo: the vLLM server at .* does not answer"):
        run_plan("plan.yaml", Options(output="run", judge=False))
    assert "serving" in (tmp_path / "run" / LOG).read_text()
    assert run_plan("plan.yaml", Options(output="run", judge=False)).status == "done"
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["engine_mismatch"] < 1e-4 for line in lines)
