"""Generating the answers of reinforcement learning: its time by engine, and a server's memory; and
what a distillation costs beside its student.
"""

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.time import machine_of
from advisor.ground.types import Gpu, Hardware
from advisor.plan.model import Launch, Plan, PlanData, Stage, VLLMServer
from advisor.probe.catalogue import find_gpu
from advisor.situation.of_plan import plan_run
from tests.estimate.specs import RunSpec, estimate, memory_estimate, shape, time_estimate

SHAPE = shape("Qwen/Qwen3-8B")
GRPO = RunSpec(
    objective="grpo", update="lora", rank=32, micro_batch_size=1, grad_accum=64, seq_len=2048,
    options={"generations": 16, "response_tokens": 1024},
)  # fmt: skip
VLLM = replace(GRPO, options={**GRPO.options, "rollouts": "vllm"})


def time_of(spec, gpu="H100 SXM"):
    found = time_estimate(spec, SHAPE, machine_of(find_gpu(gpu).spec))
    assert found is not None
    return found


def test_a_server_generates_faster_and_the_rest_of_a_step_is_the_same():
    """The step differs by the time of generating alone."""
    own, served = time_of(GRPO), time_of(VLLM)
    assert served.generate_s == pytest.approx(own.served_s)
    assert own.generate_s > 1.5 * served.generate_s
    assert own.step_s - own.generate_s == pytest.approx(served.step_s - served.generate_s)
    assert time_of(replace(GRPO, objective="sft")).generate_s == 0


def test_the_answers_of_a_step_are_generated_together():
    """Twice as many prompts in a call of at most 512 answers take as many tokens one after the
    other: the weights are read as often, and longer caches of keys and values alone take more. Two
    calls take twice as long.
    """
    less, more, most = (replace(GRPO, grad_accum=count, seq_len=1024) for count in (16, 32, 64))
    one, same, two = (time_of(spec).generate_s for spec in (less, more, most))
    assert one < same < 1.5 * one
    assert two == pytest.approx(2 * same, rel=0.01)


def test_the_advice_says_what_a_server_would_save():
    """On a GPU where it saves a tenth of a step; not with a server, nor for a module that no
    server takes.
    """
    gpu = find_gpu("H100 SXM").spec
    hardware = Hardware(
        kind="cuda", origin="stated",
        gpus=(Gpu(name=gpu.name, spec=gpu, memory_total_bytes=gpu.memory_bytes),),
    )  # fmt: skip

    def said(spec):
        return [text for text in estimate(spec, SHAPE, hardware).memory.warnings if "vLLM" in text]

    (text,) = said(GRPO)
    assert "of a step; a vLLM server" in text
    assert not said(VLLM)
    assert not said(replace(GRPO, update="ia3"))
    assert not said(replace(GRPO, objective="sft"))


def test_a_server_on_the_same_gpu_takes_its_share_of_it():
    """launch.vllm with gpus 0: 0.4 of 80 GB beside everything that trains."""
    gpu = find_gpu("H100 SXM").spec
    stage = Stage(
        name="grpo", objective="grpo", update="lora", learning_rate=1e-5,
        options={"rollouts": "vllm"},
    )  # fmt: skip
    plan = Plan(model="m", data=PlanData(path="x"), stages=(stage,))
    card = Gpu(name="card", memory_total_bytes=gpu.memory_bytes, spec=gpu)
    hardware = Hardware(kind="cuda", origin="stated", gpus=(card,))
    peaks = []
    for server in (None, VLLMServer(python="p", gpus=0, memory=0.4), VLLMServer(python="p")):
        served = replace(plan, launch=Launch(device="cuda", vllm=server))
        peaks.append(memory_of(plan_run(served, stage, SHAPE, hardware)))
    alone, shared, beside = peaks
    assert shared.peak_bytes - alone.peak_bytes == pytest.approx(0.4 * gpu.memory_bytes, rel=0.12)
    assert beside.peak_bytes == alone.peak_bytes
    (term,) = [term for term in shared.peak.terms if term.name.startswith("vLLM server")]
    assert term.size_bytes == pytest.approx(0.4 * gpu.memory_bytes)


def test_training_alone_generates_nothing():
    """With a server of its own GPU the trainer never holds the answers of a step."""
    names = [
        {moment.name for moment in memory_estimate(spec, SHAPE).moments}
        for spec in (GRPO, VLLM, replace(VLLM, objective="ppo"))
    ]
    assert ["generating answers" in found for found in names] == [True, False, True]


STUDENT, TEACHER = (shape(name) for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"))
DISTILL = RunSpec(objective="distill", precision="mixed", micro_batch_size=4, grad_accum=4)


def with_options(**options):
    return replace(DISTILL, options=options)


def teacher_bytes(**options):
    terms = memory_estimate(with_options(**options), STUDENT).peak.terms
    return next((term.size_bytes for term in terms if term.name == "teacher"), 0)


def step_s(**options):
    machine = machine_of(find_gpu("nvidia-h100-sxm5-80gb").spec)
    return time_estimate(with_options(**options), STUDENT, machine).step_s


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher_params": TEACHER.params}, TEACHER.params * 2),
        ({"teacher_params": TEACHER.params, "teacher_quantization": "nf4"}, 0.55 * TEACHER.params),
        ({"teacher_params": 0}, 0),  # the student's own frozen base
        ({}, STUDENT.params * 2),  # not known: taken as large as the student
    ],
    ids=["16-bit", "4-bit", "own-base", "not-known"],
)
def test_the_teacher_stands_beside_the_student(options, expected):
    """Its weights are a line of every moment, by its own size and quantization."""
    assert teacher_bytes(**options) == pytest.approx(expected, rel=1e-6, abs=1)


def test_answers_take_memory_and_time_by_their_share():
    """At on_policy 0 nothing is generated; the more the student writes, the longer a step takes."""
    teacher = {"teacher_params": TEACHER.params, "response_tokens": 256}
    at = [step_s(**teacher, on_policy=share) for share in (0.0, 0.25, 1.0)]
    assert at[0] < at[1] < at[2]
    memory = memory_estimate(with_options(**teacher, on_policy=0.0), STUDENT)
    assert "generating answers" not in [moment.name for moment in memory.moments]


def test_a_larger_teacher_takes_longer():
    """Its forward pass is counted by its own size."""
    small = step_s(teacher_params=STUDENT.params, on_policy=0.0)
    assert step_s(teacher_params=TEACHER.params, on_policy=0.0) > small
