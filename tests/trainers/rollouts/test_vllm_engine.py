"""The engine `vllm`, against a server of our own that speaks vLLM's addresses and generates."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.plan.model import Launch, VLLMServer
from advisor.plan.vllm import ServerNeeds
from advisor.plan.vllm_client import VLLMClient
from tests.trainers.alignment import keys_of
from tests.trainers.pretend_gpu import note, pretend_gpu
from tests.trainers.rollouts.vllm_stand_in import StandIn, scored
from tests.trainers.runs import metrics, trained
from trainers.rollouts import Sampling
from trainers.rollouts.vllm_engine import OpenServer, VLLMEngine, open_server, write_weights

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]
SAMPLING = Sampling(limit=6, stops=[2], temperature=0.7)


@pytest.fixture
def server(tiny_model):
    with StandIn(tiny_model) as running:
        yield running


def needs(tiny_model, **keys):
    values = {"model": str(tiny_model), "tokens": 64, "lora_rank": 4, "processed": True}
    return ServerNeeds(**{**values, **keys})


def changed(model, part):
    """Train a step, so to speak."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.normal_(std=0.1)


@pytest.mark.parametrize("sends", ["adapter", "weights"])
def test_answers_come_from_the_weights_of_the_last_step(sends, server, tiny_model, tmp_path):
    """Their log-probabilities are the policy's, and folders that carried weights are removed."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    part = "mlp.up_proj"
    if sends == "adapter":
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model, part = get_peft_model(model, config), "lora_B"
    found, note = open_server(VLLMClient(server.url, 30), needs(tiny_model), stage="x")
    assert note == f"answers come from vLLM 0.33.0 at {server.url}"
    engine = VLLMEngine(found, lambda: nullcontext(model), sends=sends, run=tmp_path, stage="x")
    for _ in range(2):
        changed(model, part)
        engine.load_weights()
        answers = engine.generate(PROMPTS, SAMPLING, n=2)
        assert answers.prompts == [prompt for prompt in PROMPTS for _ in range(2)]
        assert answers.ended == [ids[-1] == 2 for ids in answers.ids]
        # Whole weights are rounded to bfloat16 on their way.
        near = 2e-5 if sends == "adapter" else 0.1
        for one, other in zip(answers.log_probs, scored(model, answers, 0.7), strict=True):
            assert one == pytest.approx(other, abs=near)
    folders = [Path(one.name) for one in engine.folders]
    assert len(folders) == (sends == "adapter")
    assert [len(server.adapters), server.reloads] == ([1, 0] if sends == "adapter" else [0, 2])
    engine.close()
    assert not server.adapters
    assert not any(folder.exists() for folder in folders)


def test_whole_weights_leave_the_gpu_one_by_one(tiny_model, tmp_path, monkeypatch):
    """Rounded on their way, weights take one tensor's room on the GPU, and tied ones go once."""
    with pretend_gpu():
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).to("cuda")
        largest = max(one.numel() for one in model.parameters())
        extra, peaks = {}, [0]
        own = {one.untyped_storage().data_ptr() for one in model.parameters()}

        def noted(tensor, device):
            note(tensor, device)
            storage = tensor.untyped_storage()
            extra.pop(storage.data_ptr(), None)
            if device.type == "cuda" and storage.data_ptr() not in own:
                extra[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
            peaks.append(sum(size for alive, size in extra.values() if not alive.expired()))

        monkeypatch.setattr("tests.trainers.pretend_gpu.note", noted)
        write_weights(model, tmp_path)
    # One tensor in bfloat16; its copy for the host is noted as the GPU's for a moment.
    assert max(peaks) <= 2 * 2 * largest
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.offset_keys()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert sum(map(torch.numel, tensors)) == model.num_parameters()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"healthy": False}, "does not answer"),
        ({"version": "0.9.2"}, r"is version 0.9.2, and 0.22 is the oldest"),
        ({"root": "another/model"}, "serves another/model, and the stage trains"),
        ({"longest": 32}, r"takes 32 tokens .* have up to 64"),
        ({"rank": 2}, "takes LoRA up to rank 2, and the stage has rank 4"),
        ({"rank": 0}, r"takes LoRA up to rank 0.*--enable-lora --max-lora-rank 8"),
        ({"logprobs_mode": "raw_logprobs"}, "raw_logprobs, whose probabilities leave out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_server_that_lacks_something_is_refused_before_anything_loads(
    wrong, expected, server, tiny_model
):
    """The message names what it lacks, the line that starts one, and the engine that needs none."""
    for name, value in wrong.items():
        setattr(server, name, value)
    with pytest.raises(MachineNotReady, match=expected) as error:
        open_server(VLLMClient(server.url, 5), needs(tiny_model), stage="x")
    wanted = (
        f"stage x: the vLLM server at {server.url} ",
        f"vllm serve {tiny_model} --max-model-len 64",
        "rollouts: transformers",
    )
    assert [words for words in wanted if words not in str(error.value)] == []


def test_a_newer_server_is_taken_and_named(server, tiny_model):
    """Nobody has looked whether its addresses are still the same."""
    server.version = "0.40.1"
    _, note = open_server(VLLMClient(server.url, 5), needs(tiny_model), stage="x")
    assert "newer than 0.33" in note


def test_a_server_that_takes_too_long_or_redirects_is_a_fault(server, tiny_model, tmp_path):
    """Slow answers end after `timeout_s`; another address is never asked."""
    server.slow_s = 1.0
    hasty = OpenServer(VLLMClient(server.url, 0.2), server.root)
    engine = VLLMEngine(hasty, nullcontext, sends="adapter", run=tmp_path, stage="x")
    with pytest.raises(TrainingFailed, match=r"did not answer /v1/completions within 0.2 s"):
        engine.generate(PROMPTS, SAMPLING)
    server.found = lambda path, body: (307, None)
    with pytest.raises(MachineNotReady, match="refused /health: 307"):
        open_server(VLLMClient(server.url, 5), needs(tiny_model), stage="x")


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"token_ids": [5, 999_999, 2]}, "gave token 999999, and the model has"),
        ({"token_ids": [5, -1, 2]}, "Expected `int` >= 0"),
        ({"token_ids": [5, 6.0, 2]}, "Expected `int`, got `float`"),
        ({"token_ids": [5, 10**30, 2]}, "gave token 1000000000"),
        ({"token_ids": []}, "an answer of 0 tokens instead of 1 to 6"),
        ({"token_ids": [5] * 7}, "an answer of 7 tokens instead of 1 to 6"),
        ({"token_ids": [5, 6]}, "without the log-probability of each token"),
        ({"logprobs": None}, "Expected `object`, got `null`"),
        ({"logprobs": {"token_logprobs": [-1.0, "x", -1.0]}}, "Expected `float | null`, got `str`"),
        ({"logprobs": {"token_logprobs": [-1.0, 5.0, -1.0]}}, "<= 0.001"),
        ({"index": 7}, "gave 3 answers, and not one for each of 3"),
        ([1, 2], "Expected `object`, got `array`"),
        ({"choices": None}, "Expected `array`, got `null`"),
        ({"choices": []}, "gave 0 answers, and not one for each of 3"),
    ],
)
def test_answers_that_are_none_end_the_stage(lie, said, server, tiny_model, tmp_path, monkeypatch):
    """Token ids that the model does not have never reach it; the error names what was wrong."""
    monkeypatch.setattr("trainers.rollouts.vllm_engine.REQUESTS", 1)
    engine = VLLMEngine(
        OpenServer(VLLMClient(server.url, 5), server.root),
        lambda: nullcontext(AutoModelForCausalLM.from_pretrained(tiny_model)),
        sends="weights", run=tmp_path, stage="x",
    )  # fmt: skip
    engine.load_weights()
    good = {"token_ids": [5, 6, 2], "logprobs": {"token_logprobs": [-1, None, -0.5]}}
    answer = {"choices": [good | {"index": index} for index in range(3)]}
    server.found = lambda path, body: (200, answer)
    assert engine.generate(PROMPTS, SAMPLING).ids == [[5, 6, 2]] * 3
    if isinstance(lie, list):
        answer = lie
    elif "choices" in lie:
        answer |= lie
    else:
        answer["choices"][0] |= lie
    with pytest.raises(TrainingFailed, match=f"stage x: the vLLM .*{re.escape(said)}"):
        engine.generate(PROMPTS, SAMPLING)


@pytest.fixture
def stage(align, server):
    """A stage of three steps whose answers come from the server."""
    common = {"micro_batch_size": 4, "rollouts": "vllm", "scheduler": "constant", "warmup": 0.0}

    def build(name, update="lora", **keys):
        own = {"missing_end_penalty": 0.0, "kl_limit": 100.0} if name == "ppo" else {}
        job = align(name, **keys_of(name, update, **common, **own, **keys), job_judge=False)
        launch = Launch(vllm=VLLMServer(url=server.url))
        return replace(job, plan=structs.replace(job.plan, launch=launch))

    return build


@pytest.mark.parametrize(
    ("name", "update"), [("grpo", "full"), ("rloo", "lora"), ("ppo", "lora"), ("ppo", "full")]
)
def test_a_stage_learns_from_the_answers_of_a_server(name, update, stage, server):
    """The server gets the weights of every step, though a step moves its probabilities far."""
    full = update == "full"
    job = stage(name, update)
    trained(job)
    lines = metrics(job)
    assert len(lines) == 3
    assert all(line["grad_norm"] > 0 for line in lines)
    # Whole weights travel in bfloat16.
    assert all(line["engine_mismatch"] < (0.02 if full else 1e-4) for line in lines)
    assert all(line["correction_capped"] == 0 for line in lines)
    assert (len(server.loaded), server.reloads) == ((0, 3) if full else (3, 0))
    assert len(set(server.loaded)) == len(server.loaded)  # no cache of the last weights is met
    assert not any(Path(folder).exists() for folder in server.loaded)
    assert not server.adapters


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_answers_of_another_policy_are_corrected_and_counted(name, stage, server):
    """A server with a seventh of our probabilities has a recorded mismatch and cut weights."""
    server.shifted = -2.0
    job = stage(name, job_max_steps=1)
    trained(job)
    (line,) = metrics(job)
    assert (line["engine_mismatch"], line["correction_capped"]) == (pytest.approx(2.0, abs=1e-3), 1)
    if name == "grpo":  # TRL leaves out answers of which the ratio is that far off
        assert line["grad_norm"] == 0


def test_a_server_that_dies_ends_the_run_which_resumes(stage, server):
    """The error names stage and server, and the same call goes on once a server runs again."""
    server.dies_at = 9  # each step asks for the answers to four prompts in four requests
    job = stage("ppo", save_steps=1)
    with pytest.raises(TrainingFailed, match=r"stage ppo: the vLLM server at .* does not answer"):
        trained(job)
    assert [line["step"] for line in metrics(job)] == [1, 2]
    server.dies_at, server.healthy = None, True
    assert (trained(job)["steps"], [line["step"] for line in metrics(job)]) == (3, [1, 2, 3])


def test_what_a_server_cannot_load_is_refused(stage):
    """DoRA is no plain LoRA beside the base."""
    with pytest.raises(InputError, match=r"rollouts is vllm, and .*use_dora"):
        trained(stage("grpo", peft={"use_dora": True}))
