"""Distillation: a frozen teacher beside the student, and answers that the student writes for a
share of the micro-batches.

Where the teacher's size is not known it is taken as large as the student.
"""

from __future__ import annotations

import math

from advisor.estimate import sources as src
from advisor.estimate.run import Run
from advisor.estimate.types import Term, term_of
from advisor.methods import objective

# Bytes of a weight with its constants; a quantised teacher is counted as if embeddings were too.
TEACHER_BYTES = {"nf4": 0.55, "int8": 1.0}


def written_share(run: Run) -> float:
    """The share of the micro-batches that the student answers itself."""
    given = run.options.get("on_policy")
    return float(objective("distill").keys["on_policy"].default if given is None else given)


def answers_at_once(run: Run) -> int:
    """How many answers are written together: all of an optimizer step."""
    return max(1, math.ceil(run.stage.micro_batch_size * run.stage.grad_accum * written_share(run)))


def flop_factor(run: Run, factor: float) -> float:
    """The student's own passes: no reward model looks at its answers."""
    return factor


def beside_flops(run: Run, weights: float) -> float:
    """FLOP per token of the teacher's forward pass beyond those of one of the student's size."""
    teacher = run.options.get("teacher_params")
    return 0.0 if teacher is None else 2.0 * (float(teacher) - weights)


def other_roles(run: Run, base_bytes: float) -> list[Term]:
    """The teacher, whole on each device; nothing where it is the student's own frozen base."""
    params = run.options.get("teacher_params")
    if params == 0:
        return []
    if params is None:
        because = "its size is not known: taken as large as the student"
        return [term_of("teacher", base_bytes, because, src.COUNT)]
    quantization = run.options.get("teacher_quantization")
    plain = 2 if run.precision == "mixed" else run.weight_bytes
    each = TEACHER_BYTES.get(str(quantization), plain)
    because = f"{int(params):,} x {each:g} B, frozen, whole on each device"
    return [term_of("teacher", float(params) * each, because, src.COUNT)]
