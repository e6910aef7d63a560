"""Generating by trainer or server, its memory, and what a distillation holds beside its student."""

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.plan.model import Launch, Plan, PlanData, Stage, VLLMServer
from advisor.situation.of_plan import plan_run
from tests.estimate.specs import (
    RunSpec,
    estimate,
    hardware_with,
    memory_estimate,
    shape,
    terms,
    time_estimate,
)

MODEL = "Qwen/Qwen3-8B"
H100 = hardware_with("H100 SXM")
CARD = H100.gpus[0].spec
GRPO = RunSpec(
    objective="grpo", update="lora", rank=32, micro_batch_size=1, grad_accum=64, seq_len=2048,
    options={"generations": 16, "response_tokens": 1024},
)  # fmt: skip
VLLM = replace(GRPO, options={**GRPO.options, "rollouts": "vllm"})


def test_a_server_generates_faster_and_the_rest_of_a_step_is_the_same():
    own, served, sft = (
        time_estimate(spec, MODEL, "H100 SXM")
        for spec in (GRPO, VLLM, replace(GRPO, objective="sft"))
    )
    assert served.generate_s == pytest.approx(own.served_s)
    assert own.generate_s > 1.5 * served.generate_s
    assert own.step_s - own.generate_s == pytest.approx(served.step_s - served.generate_s)
    assert sft.generate_s == 0


def test_a_server_that_sleeps_is_there_while_answers_are_written_alone():
    awake, asleep = (
        memory_estimate(replace(VLLM, server_memory=0.6, framework=name), MODEL, device=CARD)
        for name in ("trl 0.26", "EasyR1 0.3.2 (verl)")
    )
    assert asleep.needed.name == "generating answers"
    assert asleep.need_bytes < awake.need_bytes


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (GRPO, "of a step; a vLLM server"),
        (VLLM, None),
        (replace(GRPO, update="ia3"), None),  # no server takes such a module
        (replace(GRPO, objective="sft"), None),
    ],
)
def test_the_advice_says_what_a_server_would_save(spec, said):
    found = [text for text in estimate(spec, shape(MODEL), H100).memory.warnings if "vLLM" in text]
    assert [said in text for text in found] == ([True] if said else [])


def test_a_server_on_the_same_gpu_takes_its_share_of_it():
    """launch.vllm with gpus 0: 0.4 of 80 GB beside everything that trains."""
    memory_bytes = H100.gpus[0].memory_total_bytes
    stage = Stage(
        name="grpo", objective="grpo", update="lora", learning_rate=1e-5,
        options={"rollouts": "vllm"},
    )  # fmt: skip
    plan = Plan(model="m", data=PlanData(path="x"), stages=(stage,))
    alone, shared, beside = (
        memory_of(
            plan_run(
                replace(plan, launch=Launch(device="cuda", vllm=server)), stage, shape(MODEL), H100
            )
        )
        for server in (None, VLLMServer(python="p", gpus=0, memory=0.4), VLLMServer(python="p"))
    )
    assert shared.peak_bytes - alone.peak_bytes == pytest.approx(0.4 * memory_bytes, rel=0.12)
    assert beside.peak_bytes == alone.peak_bytes
    (term,) = [term for term in shared.peak.terms if term.name.startswith("vLLM server")]
    assert term.size_bytes == pytest.approx(0.4 * memory_bytes)


STUDENT, TEACHER_PARAMS = shape("Qwen/Qwen3-0.6B"), 8_190_735_360  # of Qwen3-8B
DISTILL = RunSpec(objective="distill", precision="mixed", micro_batch_size=4, grad_accum=4)
ON_STORED = {"teacher_params": TEACHER_PARAMS, "response_tokens": 256, "on_policy": 0.0}


@pytest.mark.parametrize(
    ("spec", "generates"),
    [
        (GRPO, True),
        (VLLM, False),  # with a server of its own GPU the trainer never holds answers
        (replace(VLLM, objective="ppo"), True),
        (replace(DISTILL, options=ON_STORED), False),
    ],
)
def test_training_alone_generates_nothing(spec, generates):
    moments = [moment.name for moment in memory_estimate(spec, STUDENT).moments]
    assert ("generating answers" in moments) is generates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher_params": TEACHER_PARAMS}, TEACHER_PARAMS * 2),
        ({"teacher_params": TEACHER_PARAMS, "teacher_quantization": "nf4"}, 0.55 * TEACHER_PARAMS),
        ({"teacher_params": 0}, 0),  # the student's own frozen base
        ({}, STUDENT.params * 2),  # not known: taken as large as the student
    ],
    ids=["16-bit", "4-bit", "own-base", "not-known"],
)
def test_the_teacher_stands_beside_the_student(options, expected):
    """Its weights are a line of every moment, by its own size and quantization."""
    held = terms(replace(DISTILL, options=options), STUDENT, "peak").get("teacher", 0)
    assert held == pytest.approx(expected, rel=1e-6, abs=1)
