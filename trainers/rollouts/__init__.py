"""Rollouts: prompts as token ids in, sampled answers out.

transformers_engine.py generates in the training process, vllm_engine.py asks a vLLM server. Every
method that learns from its own answers takes either, by the key `rollouts` of its stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# Names in metrics.jsonl, of engines that differ from the trainer: the mean difference of a token's
# log-probability, and the share of importance weights that were too large and were cut.
ENGINE_MISMATCH, CORRECTION_CAPPED = "engine_mismatch", "correction_capped"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    By default from softmax(logits / temperature) over the whole vocabulary: with top_p or a
    repetition penalty the log-probabilities would be those of another policy.
    """

    limit: int  # the longest answer, in tokens
    stops: Sequence[int]  # the tokens that end an answer
    temperature: float = 1.0  # 0: always the likeliest token
    shortest: int = 0  # no stop token before so many tokens
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    min_p: float | None = None
    repetition_penalty: float = 1.0
    # Further settings by the engine's own names: of transformers' GenerationConfig, or fields of
    # the request to a vLLM server.
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Answers:
    prompts: Sequence[Sequence[int]]  # one for each answer
    ids: list[list[int]]  # of each answer, with the token that ended it
    ended: list[bool]  # by a stop token; else the limit cut it
    # Of each token, under the distribution it was drawn from, as an engine that differs from the
    # trainer computed them; else [].
    log_probs: list[list[float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of prompts and answers together."""
        return sum(map(len, self.prompts)) + sum(map(len, self.ids))


class Engine(Protocol):
    """What generates answers. All processes of a run call each method at the same time."""

    name: str  # of the key `rollouts`
    # Whether answers come from other arithmetic than the trainer's, so that their probabilities
    # differ a little and the loss has to be corrected by importance weights.
    differs: bool

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int = 1
    ) -> Answers:
        """`n` answers to each prompt: those to a prompt stand together, in the prompts' order.

        Random numbers are torch's own in the engine `transformers`, so that a seed repeats the
        answers; a server draws its own.

        Args:
            prompts: As token ids.
            sampling: How answers are drawn.
            n: Answers to each prompt.
        """

    def load_weights(self) -> None:
        """Take the weights that the policy has now. Called after every optimizer step, before the
        next answers.
        """

    def close(self) -> None:
        """Let go of what the engine holds."""
