"""How far a measured peak may lie from its estimate: a band that widens with what is not known.

The widths are distances in log(measured / estimated), one for a run whose trainer, counter and
settings are all known, and one more for each thing that is not, or that is harder to predict.
Independent errors add in squares, so the widths of a run do too.

They are fitted over sources, not over rows: rows of one source share code and hardware, so only
another source says how wrong the estimate is where nobody looked. `python -m benchmarks refit
--write` fits them again (tools/generate/accuracy_bands.py says how); docs/estimates.md prints how
many peaks lie inside, of sources that were left out as well.

The CPU has no width of its own: of ten runs of one model on one machine (`python -m benchmarks
learning`), which were known when its terms were found, the measured peak lay 14 % below its
estimate to 12 % above it, within the width of known runs. So few runs of one kind say no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from advisor.estimate.run import CPU_OPTIMIZERS, Run
from advisor.estimate.types import Fits, MemoryEstimate

KNOWN = "known"  # every run has this width
# What widens the band, in words that follow "because".
WORDS: Mapping[str, str] = {
    "lengths": "every batch is padded to another length",
    "experts": "the model is a mixture of experts",
    "offload": "weights, activations or the optimizer live in host memory",
    "gpus": "the run takes several GPUs",
    "trainer": "how this trainer uses memory is not known",
    "newer": "how this trainer of 2025 or later uses memory is not known",
    "counter": "what measures the memory is not named",
    "loss": "how the loss is computed is not stated",
    "size": "the model is known by its size alone",
}
# Log distances (below, above) of the estimate. Written by `python -m benchmarks refit --write`.
# fitted widths
WIDTHS: Mapping[str, tuple[float, float]] = {
    "known": (0.19, 0.19),
    "lengths": (0.34, 0.21),
    "experts": (0.00, 0.00),
    "offload": (0.00, 0.21),
    "gpus": (0.00, 0.20),
    "trainer": (0.44, 0.48),
    "newer": (0.19, 0.02),
    "counter": (0.72, 0.00),
    "loss": (0.00, 1.06),
    "size": (1.50, 0.33),
}
# end of fitted widths
# Where a shape's dimensions were read; a shape of any other origin is guessed from a size.
READ = ("catalogue", "folder", "hub", "suggested")


def doubts_of(run: Run) -> tuple[str, ...]:
    """What of a run is not known or hard to predict: keys of WORDS, in their order."""
    unread = not run.trainer.is_known or bool(run.trainer.guessed)
    # A name that a known model's stands in has its dimensions.
    alike = run.model.note.startswith("shape of ")
    holds = (
        run.ragged > 0 and run.counter not in ("allocated", "active"),
        bool(run.dims.routed_params),
        run.offloaded or run.checkpointing == "offload" or run.optimizer in CPU_OPTIMIZERS,
        run.gpus > 1,
        unread and not run.trainer.is_recent,
        unread and run.trainer.is_recent,
        run.counter == "unknown",
        run.has_logits and not (run.is_ours or run.stated.get("loss") or run.tiles_loss),
        run.model.origin not in READ and not alike,
    )
    return tuple(key for key, is_so in zip(WORDS, holds, strict=True) if is_so)


def guess_note(run: Run) -> str:
    """What is guessed of an unknown trainer, as far as it counts here; empty for a known one."""
    stage, trainer = run.stage, run.trainer
    if trainer.is_known:
        return ""
    from advisor.methods.trainers import TRAITS

    sharded = run.device.sharding == "fsdp" and run.device.gpus > 1
    counts = {
        "fused_with_loss": run.stated.get("loss") == "chunked" and stage.gradient_checkpointing,
        "flat_adapters": sharded and stage.update != "full",
        "adds_up_whole_gradients": sharded and stage.grad_accum > 1,
        "ragged": not stage.packing and stage.update != "full",
    }
    guessed = [TRAITS[name].help for name in trainer.guessed if counts.get(name, True)]
    return (
        f"the trainer '{trainer.name}' is not known: taken for transformers' Trainer with PEFT"
        f" and accelerate; where known trainers differ, this was guessed: {'; '.join(guessed)}"
    )


@lru_cache(maxsize=512)
def band(doubts: tuple[str, ...]) -> tuple[float, float]:
    """The band below and above an estimate, as shares of it.

    Nine in ten measured runs of a source that nobody fitted are meant to lie within
    `estimate * (1 - below)` and `estimate * (1 + above)`.

    Args:
        doubts: Keys of WIDTHS, as `doubts_of` gives them.
    """
    below, above = log_widths(doubts)
    return 1 - math.exp(-below), math.exp(above) - 1


# Doubts about all of a run's memory; the others are about what comes and goes in a step.
OF_ALL = ("offload", "gpus", "trainer", "newer", "counter", "size")


def need_band(
    need_bytes: int, *, static_bytes: int, weights_bytes: int, doubts: tuple[str, ...]
) -> tuple[int, int]:
    """The lower and the upper end around what a run needs.

    What a run holds throughout (weights, optimizer states) is arithmetic where the trainer is
    known: experts, lengths or a loss that nobody described do not change it, and the run needs no
    less than that. Where it is in doubt, the run needs no less than its weights.

    Args:
        need_bytes: The need, of which the rest is a part.
        static_bytes: What is held throughout.
        weights_bytes: The weights alone, in the dtype they are held in.
        doubts: Keys of WIDTHS, as `doubts_of` gives them.
    """
    below, above = band(doubts)
    below_all, above_all = band(tuple(doubt for doubt in doubts if doubt in OF_ALL))
    moving = need_bytes - static_bytes
    low = need_bytes - below_all * static_bytes - below * moving
    high = need_bytes + above_all * static_bytes + above * moving
    sure = weights_bytes if set(doubts) & set(OF_ALL) - {"counter"} else static_bytes
    return min(need_bytes, max(round(low), sure)), round(high)


def widening(because: Sequence[str]) -> list[str]:
    """Of the doubts in words, those whose width is above zero."""
    wide = {words for doubt, words in WORDS.items() if any(WIDTHS[doubt])}
    return [words for words in because if words in wide]


def log_widths(
    doubts: tuple[str, ...], widths: Mapping[str, tuple[float, float]] = WIDTHS
) -> tuple[float, float]:
    """Log distances below and above with these doubts: the square root of the sum of squares."""
    parts = [widths[key] for key in (KNOWN, *doubts)]
    return math.hypot(*(low for low, _ in parts)), math.hypot(*(high for _, high in parts))


# Of the device's memory. No band knows it: other programs, or a batch longer than the sample's.
HEAD_ROOM = 0.10


def memory_fits(memory: MemoryEstimate, limit_bytes: int | None) -> Fits:
    """The verdict on a need with its band; `unknown` if the memory there is is not known."""
    if limit_bytes is None:
        return "unknown"
    if memory.need_low_bytes > limit_bytes:
        return "too_big"
    if memory.need_high_bytes > limit_bytes:
        return "may_fit"
    return "fits" if memory.need_bytes <= (1 - HEAD_ROOM) * limit_bytes else "tight"
