"""What a run's record says, in the few words that summary and report share."""

from __future__ import annotations

from advisor.estimate.types import Learned
from advisor.ground.units import format_count
from advisor.methods.composition import Composition
from advisor.plan.measured_record import LearnedRecord, Measured
from advisor.plan.record import DryRunStage, StageRecord

COUNTERS = {
    "allocated": "allocated on the GPU",
    "rss_growth": "growth of the process above what it held before the model",
}


def what_was_trained(stage: StageRecord | DryRunStage) -> str:
    """Objective, update and base in a few words: 'sft+qlora (lora on a nf4 base)'."""
    name = str(
        Composition(chain=(stage.objective,), update=stage.update, quantization=stage.quantization)
    )
    return f"{name} ({stage.update} on a {stage.quantization} base)" if stage.quantization else name


def speed_words(measured: Measured) -> str:
    """'2.06 s a step, 243 tokens/s, 12% of the tokens computed were padding'; what is known of
    it.
    """
    parts = [f"{measured.step_s:.2f} s a step"] if measured.step_s is not None else []
    parts += [f"{format_count(measured.tokens_per_s)} tokens/s"] if measured.tokens_per_s else []
    if measured.tokens and measured.computed_tokens:
        share = 1 - measured.tokens / measured.computed_tokens
        parts.append(f"{share:.0%} of the tokens computed were padding")
    return ", ".join(parts)


def learned_words(found: LearnedRecord) -> str:
    """'corrected by 3 runs here: memory x 0.93, speed x 1.12', as the record says it."""
    learned = Learned(
        memory_runs=found.memory_runs,
        time_runs=found.time_runs,
        memory_scale=found.memory_scale,
        time_scale=found.time_scale,
    )
    return f"corrected by {learned.sentence}"
