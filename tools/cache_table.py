"""Simulate training runs and tabulate what PyTorch's allocator keeps of them.

Run: python -m tools.cache_table

Writes the table in advisor/estimate/memory/allocator.py in six minutes of one core. A run with the
layers of a small LLaMA and LoRA or full fine-tuning is put into the allocator (tools.step_tensors).
Of its passing memory, activations kept plus the larger of the loss and one layer's backward pass:

- kept: reserved beyond the allocated peak, all micro-batches of one length;
- per_record: reserved more for each micro-batch that is longer than all before it, by its length
  over the longest;
- lost: what the smallest GPU on which the run goes through has beyond the allocated peak, of one
  length; lost_ragged: of many lengths. Cached segments are given back there, split ones cannot be.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from advisor.estimate.blocks.layer import record_layer
from advisor.estimate.blocks.settings import BlockSettings
from advisor.estimate.model.layers import Attention, Dense, LayerKind
from tools.caching import OutOfMemory
from tools.step_tensors import Peaks, Training, layer_tensors, peaks

TARGET = Path(__file__).parents[1] / "advisor" / "estimate" / "memory" / "allocator.py"
# What of a run decides the share: the loss's of the passing memory, and how many times the passing
# memory the gradients are (0: a module's).
LOSS_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
GRADIENT_RATIOS = (0.0, 0.1, 0.3, 1.0, 3.0)
HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 2048, 5504, 16, 8, 128, 24
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16
# Lengths of a micro-batch: odd ones too, so that no share hangs on one size's rounding.
TOKENS = (1531, 4096, 6007)
VARIANTS = ((False, 1), (False, 4), (True, 1), (True, 4))  # foreach, micro-batches of a step
LOSS_BYTES = 16  # of a whole logit at the loss's peak (step_tensors)
MICRO_BATCHES, RUNS = 1000, 3  # whose lengths are drawn evenly, and how often
PRECISION = 0.01  # of the passing memory, to which the smallest GPU is found


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of the grid, for any length.

    Attributes:
        passing: Bytes per token that come and go.
        gradients: Bytes of the gradients of all parameters.
    """

    training: Training
    passing: float
    gradients: int


def matrices() -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of a layer's weight matrices, in the order of MODULES."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    attention = ((HIDDEN, q), (HIDDEN, kv), (HIDDEN, kv), (q, HIDDEN))
    return (*attention, (HIDDEN, MLP), (HIDDEN, MLP), (MLP, HIDDEN))


def cell(
    *,
    checkpointed: bool,
    loss_share: float,
    trains_all: bool,
    foreach: bool = False,
    micro_steps: int = 4,
) -> Cell:
    """A run whose loss has this share of its passing memory; the vocabulary makes it so."""
    settings = BlockSettings(
        trains=trains_all,
        adapted=frozenset() if trains_all else frozenset(MODULES),
        rank=0 if trains_all else RANK,
    )
    mixer = Attention(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    kind = LayerKind(
        count=LAYERS, mixers=(mixer,), dense=Dense(width=MLP), experts=None, linears=()
    )
    tape, layer_input, output = record_layer(kind, HIDDEN, "llama", settings)
    inside = tape.backward_peak(output, [layer_input])
    kept = 2 * HIDDEN if checkpointed else tape.saved_bytes()
    one_layer = inside if checkpointed else inside - tape.saved_bytes([layer_input])
    held = LAYERS * kept
    loss = loss_share * (held + one_layer)
    if loss > one_layer:
        loss = loss_share / (1 - loss_share) * held
    weights = tuple(2 * a * b for a, b in matrices())
    adapters = tuple(4 * RANK * end for ends in matrices() for end in ends)
    vocab = max(64, round(loss / LOSS_BYTES)) if loss_share else 8192
    training = Training(
        layer=layer_tensors(tape, layer_input, output, weights if trains_all else adapters),
        layers=LAYERS, hidden=HIDDEN, vocab=vocab, weights=() if trains_all else weights,
        loss="full" if loss_share else "chunked", checkpointed=checkpointed, foreach=foreach,
        micro_steps=micro_steps, head_trains=trains_all,
    )  # fmt: skip
    found = sum(training.layer.gradients) * LAYERS + (4 * vocab * HIDDEN if trains_all else 0)
    return Cell(training, held + max(loss, one_layer), found)


@lru_cache(maxsize=1)
def draws() -> tuple[tuple[tuple[float, ...], float], ...]:
    """Runs of micro-batches with lengths relative to the longest, and the sum over those that were
    longer than all before, without the last. Of the others one after each record is kept: they find
    the blocks of before.
    """
    found = []
    for seed in range(RUNS):
        source = random.Random(seed)  # noqa: S311
        lengths, records, fresh = list[float](), list[float](), False
        for _ in range(MICRO_BATCHES):
            length = source.random()
            if not records or length > records[-1]:
                records.append(length)
                lengths.append(length)
                fresh = True
            elif fresh:
                lengths.append(length)
                fresh = False
        longest = records[-1]
        relative = tuple(length / longest for length in lengths)
        found.append((relative, sum(records[:-1]) / longest))
    return tuple(found)


def lost(
    run: Training, lengths: Sequence[int], passing: float, *, expandable: bool = False
) -> float:
    """What the smallest GPU has beyond the allocated peak, as a share of the passing bytes."""
    allocated = peaks(run, lengths).allocated
    low, high = 0.0, 2.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        try:
            limit = round(allocated + middle * passing)
            peaks(run, lengths, limit_bytes=limit, expandable=expandable)
            high = middle
        except OutOfMemory:
            low = middle
    return high


def row(
    *, expandable: bool, checkpointed: bool, gradient_ratio: float, loss_share: float
) -> tuple[float, float, float, float]:
    """(kept, per_record, lost, lost_ragged) of one cell of the grid."""
    trains_all = gradient_ratio > 0
    kept, records, least = [], [], (0.0, 0.0)
    for foreach, micro_steps in VARIANTS if trains_all else VARIANTS[:2]:
        one = cell(
            checkpointed=checkpointed, loss_share=loss_share, trains_all=trains_all,
            foreach=foreach, micro_steps=micro_steps,
        )  # fmt: skip
        for tokens in (
            (round(one.gradients / (gradient_ratio * one.passing)),) if trains_all else TOKENS
        ):
            found = _fixed(one, tokens, expandable=expandable)
            passing = tokens * one.passing
            kept.append((found.reserved - found.allocated) / passing)
        if micro_steps == 1 or foreach:
            continue
        for relative, total in draws():
            lengths = [max(1, round(tokens * share)) for share in relative]
            reserved = peaks(one.training, lengths, expandable=expandable).reserved
            records.append((reserved - found.reserved) / passing / total)
        fixed = [tokens] * (3 * micro_steps)
        least = (
            lost(one.training, fixed, passing, expandable=expandable),
            lost(one.training, lengths, passing, expandable=expandable),
        )
    return statistics.mean(kept), max(0.0, statistics.mean(records)), *least


def _fixed(one: Cell, tokens: int, *, expandable: bool) -> Peaks:
    lengths = [tokens] * (3 * one.training.micro_steps)
    return peaks(one.training, lengths, expandable=expandable)


def table() -> Iterator[str]:
    """The lines of the table."""
    yield f"LOSS_SHARES = {LOSS_SHARES}"
    yield f"GRADIENT_RATIOS = {GRADIENT_RATIOS}"
    yield "# By expandable segments and checkpointing, in hundredths: a line for each ratio of"
    yield "# gradients, a column for each share of the loss: kept, per_record, lost, lost_ragged."
    yield "ROWS = {"
    for expandable, checkpointed in product((False, True), (True, False)):
        yield f'    ({expandable}, {checkpointed}): _numbers("""'
        for ratio in GRADIENT_RATIOS:
            cells = (
                row(
                    expandable=expandable, checkpointed=checkpointed, gradient_ratio=ratio,
                    loss_share=share,
                )
                for share in LOSS_SHARES
            )  # fmt: skip
            yield " | ".join(
                " ".join(str(round(100 * number)) for number in numbers) for numbers in cells
            )
        yield '"""),'
    yield "}"


def main() -> None:
    text = TARGET.read_text("utf-8")
    before, _, rest = text.partition("# simulated shares\n")
    _, _, after = rest.partition("# end of simulated shares\n")
    lines = ["# simulated shares", *table(), "# end of simulated shares"]
    TARGET.write_text(before + "\n".join(lines) + "\n" + after, encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
