"""The rows of a micro-batch laid end to end on the CPU, so that no token of padding is computed.

Linear layers, norms and the loss see one line of all tokens; attention is computed row by row, each
with the plain causal kernel, which also skips the half of the scores that a mask would hide. Packed
rows are laid out in the same way, and need no mask of the whole line.

A model takes part if its attention goes through transformers' table of attention functions and
looks at whole rows (no sliding window), and if two rows laid end to end get the log-probabilities
that each has alone: both is found out once, before training.

Dimensions: B lines of a batch, T places of the longest, S tokens of all rows, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from trainers.job.evaluating import evaluating
from trainers.rows.packing import LIKELY, SHARE_INT8, STEPS
from trainers.rows.row import IGNORED

TAKEN = {"input_ids", "attention_mask", "position_ids", "use_cache"}  # no prefix, no embeddings
SAME = 1e-3  # largest difference of a log-probability that rounding of float32 explains; seen: 2e-5
_laid_flat: ContextVar[bool] = ContextVar("laid_flat", default=False)


def flat_line(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokens of a micro-batch without its padding, as a model takes them: one line, positions
    that begin again with each row, and the bounds of the rows; also `kept_BT`, the places they come
    from. None if the batch holds something else, such as a prefix.

    Args:
        inputs: input_ids_BT with attention_mask_BT (padded on the right) or with position_ids_BT
            (of packed rows; padding behind them has position 0).
    """
    import torch

    ids_BT: Any = inputs.get("input_ids")
    mask_BT: Any = inputs.get("attention_mask")
    positions_BT: Any = inputs.get("position_ids")
    given = {name for name, value in inputs.items() if value is not None}  # PEFT passes all names
    if ids_BT is None or not given <= TAKEN or (mask_BT is None) == (positions_BT is None):
        return None
    if mask_BT is not None:
        kept_BT = mask_BT.bool()
        positions_BT = kept_BT.cumsum(1) - 1
    else:
        inside = positions_BT != 0
        kept_BT = _until_last(inside)
    positions_S = positions_BT[kept_BT]
    starts_R = (positions_S == 0).nonzero()[:, 0]
    bounds = torch.cat([starts_R, starts_R.new_tensor([len(positions_S)])]).to(torch.int32)
    longest = int(bounds.diff().max()) if len(starts_R) else 0
    return {
        "input_ids": ids_BT[kept_BT][None],
        "position_ids": positions_S[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "kept_BT": kept_BT,
    }


def _until_last(inside_BT: Any) -> Any:
    """True up to the last True of each line."""
    return inside_BT.flip(1).cumsum(1).flip(1) > 0


def flat_labels(labels_BT: Any, line: Mapping[str, Any]) -> Any:
    """The labels of the line, where no row's first token is predicted from the row before: S."""
    labels_S = labels_BT[line["kept_BT"]]
    labels_S[line["cu_seq_lens_q"][:-1].long()] = IGNORED
    return labels_S


@contextmanager
def rows_apart() -> Iterator[None]:
    """Attention row by row, for a call of a model with a flat line: no mask is made for it."""
    use_rows()
    before = _laid_flat.set(True)
    try:
        yield
    finally:
        _laid_flat.reset(before)


_in_place: list[Any] = []  # the functions that stood in transformers' tables before ours


def use_rows() -> None:
    """Put a function into transformers' tables that computes attention row by row if it is given
    the bounds of rows; everything else goes to the one that stood there.
    """
    if _in_place:
        return
    import torch
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
    plain_mask: Any = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> Any:
        bounds = kwargs.get("cu_seq_lens_q")
        on_line = attention_mask is None and query.shape[0] == 1 and query.device.type == "cpu"
        if bounds is None or not on_line or len(bounds) < 3:
            return plain(module, query, key, value, attention_mask, **kwargs)
        sizes = bounds.diff().tolist()
        parts = [tensor.split(sizes, dim=2) for tensor in (query, key, value)]
        outputs = [plain(module, *row, None, **kwargs)[0] for row in zip(*parts, strict=True)]
        return torch.cat(outputs, dim=1), None

    def mask(*args: Any, **kwargs: Any) -> Any:
        return None if _laid_flat.get() else plain_mask(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", mask)
    _in_place.extend([plain, plain_mask])


def takes_flat_rows(model: Any) -> bool:
    """Whether this model may be given rows laid end to end: see above. Tries it on a few tokens."""
    import torch

    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (
        getattr(model.config, "_attn_implementation", None) != "sdpa"
        or layers != {"full_attention"}
        or getattr(config, "sliding_window", None)
        or getattr(config, "is_encoder_decoder", False)
    ):
        return False
    count = min(config.vocab_size, 4096)
    rows = [torch.arange(size) * 37 % count for size in (9, 24)]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.tensor([[1] * len(row) + [0] * (24 - len(row)) for row in rows])
    line = flat_line({"input_ids": batch, "attention_mask": mask})
    assert line is not None
    line.pop("kept_BT")
    try:
        with evaluating(model):
            alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
            joined_SV = model(input_ids=torch.cat(rows)[None], use_cache=False).logits[0]
            with rows_apart():
                flat_SV = model(**line, use_cache=False).logits[0]
    except (TypeError, ValueError, RuntimeError, IndexError):  # a model with a forward of its own
        return False
    alone_SV = torch.log_softmax(torch.cat(alone).float(), -1)
    likely_SV = alone_SV > alone_SV.max(-1, keepdim=True).values - LIKELY

    def moved(other_SV: Any) -> float:
        gaps_SV = (alone_SV - torch.log_softmax(other_SV.float(), -1)).abs()
        found = gaps_SV[likely_SV]
        return float(found.max()) if len(found) else math.inf  # numbers that are none

    if flat_SV.dtype == torch.float32:
        return moved(flat_SV) <= SAME
    rounding = STEPS * torch.finfo(flat_SV.dtype).eps * float(flat_SV.float().abs().max())
    return moved(flat_SV) <= max(rounding, SHARE_INT8 * moved(joined_SV))
