"""The distance between a student's and a teacher's next-token distributions, without the logits of
either held whole.

The value is the generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, equation 1), of
which beta 0 is the forward KL(teacher || student) and beta 1 the reverse KL(student || teacher).
TRL's kernel computes it, and its gradient, from hidden states and output matrices in tiles of the
vocabulary. On the CPU, where it takes twice as long (SmolLM2-135M, 384 tokens), and for a head that
is no plain matrix (one with an adapter on it), tokens go through in slices whose logits are
computed again in the backward pass if there are several.

Dimensions: N learned tokens laid end to end, H hidden size (each model its own), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainers.step.answer_loss import Head

SLICE_LOGITS = 2**25  # of one model in a slice: 128 MiB in float32


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Called with the hidden states before both heads (N, H), it gives the divergence at each
    token, in nats: N. Its gradient goes to the student alone.
    """

    student: Head
    teacher: Head
    beta: float  # 0 forward KL, 1 reverse KL, between them Jensen-Shannon
    temperature: float = 1.0  # both models' logits are divided by it

    @property
    def size(self) -> int:
        """Tokens that both heads score: matrices of one tokenizer may be padded differently."""
        return min(int(head.module.weight.shape[0]) for head in (self.student, self.teacher))

    def __call__(self, student_NH: Any, teacher_NH: Any) -> Any:
        if not len(student_NH):
            return student_NH.sum(dim=-1)
        is_plain = self.student.is_plain and self.teacher.is_plain
        if is_plain and student_NH.device.type == "cuda":
            return self.in_tiles(student_NH, teacher_NH)
        return self.in_slices(student_NH, teacher_NH)

    def in_tiles(self, student_NH: Any, teacher_NH: Any) -> Any:
        """By TRL's kernel, for heads that are plain matrices."""
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        mine, theirs = self.student, self.teacher
        found_N, _ = ChunkedDivergenceFunction.apply(
            student_NH, *_matrix(mine, self.size), teacher_NH, *_matrix(theirs, self.size),
            float(self.beta), self.temperature, mine.scale, mine.cap, theirs.scale, theirs.cap,
        )  # fmt: skip
        return found_N

    def in_slices(self, student_NH: Any, teacher_NH: Any) -> Any:
        """From the logits of some tokens at a time; those of several slices are computed again in
        the backward pass.
        """
        import torch
        from torch.utils.checkpoint import checkpoint

        def of_slice(own_NH: Any, other_NH: Any) -> Any:
            return logit_divergences(
                self.student.logits(own_NH, self.size) / self.temperature,
                self.teacher.logits(other_NH, self.size).detach() / self.temperature,
                beta=self.beta,
            )

        step = max(1, SLICE_LOGITS // self.size)
        if len(student_NH) <= step:
            return of_slice(student_NH, teacher_NH)
        slices = zip(student_NH.split(step), teacher_NH.split(step), strict=True)
        return torch.cat([checkpoint(of_slice, *these, use_reentrant=False) for these in slices])


def logit_divergences(student_NV: Any, teacher_NV: Any, *, beta: float) -> Any:
    """The divergence at each token from logits: N."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    own_NV, other_NV = log_softmax(student_NV, dim=-1), log_softmax(teacher_NV, dim=-1)

    def kl_N(of_NV: Any, towards_NV: Any) -> Any:
        """KL(of || towards)."""
        return kl_div(towards_NV, of_NV, reduction="none", log_target=True).sum(dim=-1)

    if beta == 0:
        return kl_N(other_NV, own_NV)
    if beta == 1:
        return kl_N(own_NV, other_NV)
    mixed_NV = torch.logaddexp(own_NV + math.log1p(-beta), other_NV + math.log(beta))
    return beta * kl_N(other_NV, mixed_NV) + (1 - beta) * kl_N(own_NV, mixed_NV)


def _matrix(head: Head, size: int) -> tuple[Any, Any | None]:
    """Weight and bias of the tokens that both models have."""
    bias = head.module.bias
    return head.module.weight[:size], None if bias is None else bias[:size]
