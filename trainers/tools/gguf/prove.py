"""Whether a GGUF file is the model: llama.cpp reads the same tokens, writes the same answers, and
stops where they end.

At each place of an answer that transformers wrote greedily, llama.cpp computes its own most likely
token behind the same tokens. If all agree, its greedy answer is the same one: nothing else
decides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.gguf import agreement
from advisor.ground.progress import followed
from trainers.tools.gguf.engine import Engine, EngineFailed, Place
from trainers.tools.gguf.reference import Answer, Reference

EXACT = ("F16", "BF16")  # types whose other choices must be near ties
SHOWN = 3


@dataclass(kw_only=True)
class Proof:
    """What was compared, and what differed."""

    engine: str
    kind: str  # of the file: F16, BF16, Q8_0, Q4_K_M
    texts: int = 0  # whose tokens were compared
    texts_left_out: int = 0
    prompts: int = 0
    places: int = 0  # tokens of answers that were compared
    same: int = 0  # places with the same most likely token
    ties: list[float] = field(default_factory=list)  # differences where another was taken
    limit: float = 1.0  # share of places that must be the same
    most_divergence: float = 0.0
    divergence: float = (
        0.0  # mean, in nats: how far llama.cpp's probabilities are from transformers'
    )
    ends: int = 0  # answers that end in transformers
    ended: int = 0  # those that llama.cpp ends at the same token
    faults: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        return self.same / self.places if self.places else 0.0

    @property
    def holds(self) -> bool:
        return not self.faults and self.places > 0

    def lines(self) -> list[str]:
        """What was found, in sentences."""
        if self.faults:
            return [f"not proved: {fault}" for fault in self.faults[:SHOWN]]
        ties = ""
        if self.ties and self.kind in EXACT:
            ties = f" (the others are near ties: at most {max(self.ties):.2g} apart)"
        return [
            f"proved with {self.engine}, against transformers:",
            f"  {self.texts} texts have the same tokens",
            f"  {self.same} of {self.places} tokens of {self.prompts} greedy answers are the"
            f" same{ties}; needed: {self.limit:.0%}",
            f"  probabilities are {self.divergence:.1g} nats apart in the mean; allowed:"
            f" {self.most_divergence:g}",
            f"  {self._about_ends()}",
        ]

    def _about_ends(self) -> str:
        if not self.ends:
            return "no answer ended in transformers either; llama.cpp stops at every end token"
        return f"{self.ended} of {self.ends} answers that end do so at the same token"

    def record(self) -> dict[str, Any]:
        """For proof.json."""
        return {**asdict(self), "agreement": round(self.agreement, 4), "holds": self.holds}


def prove(
    engine: Engine, path: Path, reference: Reference, *, kind: str, adapter: Path | None = None
) -> Proof:
    """Compare a file with what transformers computed. A failure of llama.cpp is a fault of the
    proof.
    """
    limits = agreement(kind)
    proof = Proof(
        engine=engine.what,
        kind=kind,
        texts=len(reference.texts),
        texts_left_out=reference.left_out,
        prompts=len(reference.answers),
        limit=limits.same,
        most_divergence=limits.divergence,
        ends=sum(answer.stopped for answer in reference.answers),
    )
    longest = max(len(answer.prompt) + len(answer.tokens) for answer in reference.answers)
    try:
        engine.load(path, context=64 * math.ceil((longest + 8) / 64), adapter=adapter)
        _compare_tokens(proof, engine, reference)
        _compare_ends(proof, engine, reference)
        _compare_answers(proof, engine, reference)
    except EngineFailed as error:
        proof.faults.append(str(error))
    return proof


def _compare_tokens(proof: Proof, engine: Engine, reference: Reference) -> None:
    for whole, expected in ((False, reference.parts), (True, reference.wholes)):
        found = engine.tokens(reference.texts, whole=whole)
        for text, ours, theirs in zip(reference.texts, expected, found, strict=True):
            if list(ours) != list(theirs):
                at = _first_difference(ours, theirs)
                proof.faults.append(
                    f"the text {text[:40]!r} has other tokens in llama.cpp, from token {at}:"
                    f" {list(theirs[at : at + 4])} instead of {list(ours[at : at + 4])}"
                )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _compare_ends(proof: Proof, engine: Engine, reference: Reference) -> None:
    for token, ends in zip(reference.ends, engine.ends(reference.ends), strict=True):
        if not ends:
            proof.faults.append(f"llama.cpp does not stop at token {token}, which ends an answer")
    for answer in reference.answers:
        inside = answer.tokens[:-1] if answer.stopped else answer.tokens
        stops = [token for token, ends in zip(inside, engine.ends(inside), strict=True) if ends]
        if stops:
            proof.faults.append(
                f"llama.cpp stops at token {stops[0]} inside an answer, where transformers goes on"
                " (if it ends answers, eos_token_id in generation_config.json has to list it)"
            )


def _compare_answers(proof: Proof, engine: Engine, reference: Reference) -> None:
    total = 0.0
    for answer in followed(reference.answers, f"answering in llama.cpp ({proof.kind})"):
        places = engine.score(answer.prompt, answer.tokens, answer.watched)
        last_same = False
        for at, place in enumerate(places):
            proof.places += 1
            last_same = place.best == answer.tokens[at]
            proof.same += last_same
            if not last_same:
                proof.ties.append(_gap(answer, at, place))
            total += _divergence(answer.log_probs[at], place.watched)
        proof.ended += answer.stopped and last_same
    proof.divergence = total / max(1, proof.places)
    if not math.isfinite(proof.divergence):
        proof.faults.append("llama.cpp computes numbers that are none (NaN)")
    elif proof.divergence > proof.most_divergence:
        proof.faults.append(
            f"the probabilities are {proof.divergence:.2g} nats from those of transformers;"
            f" {proof.kind} may be {proof.most_divergence:g} apart"
        )
    near = agreement(proof.kind).near_tie
    if proof.kind in EXACT and any(gap > near for gap in proof.ties):
        proof.faults.append(
            f"llama.cpp takes another token where transformers is sure: {max(proof.ties):.2g}"
            f" apart (a near tie is at most {near:g})"
        )
    if proof.agreement < proof.limit:
        proof.faults.append(
            f"only {proof.agreement:.1%} of {proof.places} tokens are the same; {proof.kind} needs"
            f" {proof.limit:.0%}"
        )
    if proof.ends and not proof.ended:
        proof.faults.append("no answer ends in llama.cpp where it ends in transformers")


def _gap(answer: Answer, at: int, place: Place) -> float:
    """By how much transformers prefers its own token to the one that llama.cpp took."""
    if place.best not in answer.watched[at]:
        return answer.log_probs[at][0] - answer.log_probs[at][-1]
    other = answer.log_probs[at][answer.watched[at].index(place.best)]
    return answer.log_probs[at][0] - other


def _divergence(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Kullback-Leibler divergence over the watched tokens and all others as one, in nats."""
    if any(map(math.isnan, (*ours, *theirs))):
        return math.nan  # which no comparison below would notice
    pairs = [(math.exp(a), math.exp(b)) for a, b in zip(ours, theirs, strict=True)]
    rest = (max(1e-12, 1 - sum(a for a, _ in pairs)), max(1e-12, 1 - sum(b for _, b in pairs)))
    return sum(a * math.log(a / max(b, 1e-12)) for a, b in [*pairs, rest] if a > 0)
