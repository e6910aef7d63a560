"""What a distillation costs beside its student: the teacher's weights and forward pass, and the
answers of its own share of the micro-batches.
"""

import pytest
from msgspec.structs import replace

from advisor.estimate.time import machine_of
from advisor.probe.catalogue import find_gpu
from tests.estimate.specs import RunSpec, memory_estimate, shape, time_estimate

STUDENT, TEACHER = (shape(name) for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"))
SPEC = RunSpec(objective="distill", precision="mixed", micro_batch_size=4, grad_accum=4)


def with_options(**options):
    return replace(SPEC, options=options)


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
