"""A LoRA result merged into its base: one plain model, compared with the unmerged one before anyone
relies on it.

Run: python -P -m trainers.tools.merge RUN --out FOLDER [--only NAME] [--device cuda]

A 4-bit base has two candidates: the original 16-bit weights, and the 4-bit ones written out. The
trained module saw the second, servers usually hold the first; both gaps are measured, and the
nearer one is saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.files import text_of
from advisor.ground.progress import board, track, waiting
from advisor.record.files import writing_stages
from trainers.evaluation.generation import GENERAL
from trainers.evaluation.saved_result import difference
from trainers.job.evaluating import evaluating
from trainers.job.files import write_json
from trainers.job.machine import torch_device
from trainers.tools import command
from trainers.tools.results import (
    Result,
    load_module,
    load_result,
    load_tokenizer,
    record_of,
    result_of,
)
from trainers.updates.experts import returning_routers

ROWS = 8
TOKENS = 64  # of each row
SAME = 0.05  # greatest difference of log-probabilities that rounding of merged weights explains


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far a merged model is from the unmerged one, on the rows that were compared."""

    base: str  # what it was merged into
    greatest: float  # difference of log-probabilities
    same_choice: float  # share of positions with the same most likely token


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A plain model in memory, and how far each candidate is from the unmerged one."""

    model: Any
    tokenizer: Any
    gaps: Sequence[Gap]  # the nearest first: that one is the model
    rows: int
    held_out: bool  # whether the rows are of the run's data; else they are general texts

    def lines(self, label: str) -> list[str]:
        lines = [f"{label}: merged into {self.gaps[0].base}"]
        read = "held-out rows" if self.held_out else "general texts (the run was not judged)"
        lines += [
            f"  {gap.base}: log-probabilities of {self.rows} {read} differ by at most"
            f" {gap.greatest:.3g}, the most likely token is the same at {gap.same_choice:.1%} of"
            " places"
            for gap in self.gaps
        ]
        if self.gaps[0].greatest > SAME:
            lines.append(
                "  not the same model: 16-bit and 4-bit weights round differently; serve the"
                " adapter on its own base where the answers must be those of the test"
            )
        return lines


def export(run: Path, out: Path, *, only: str | None, device: Any) -> list[str]:
    """Merge every LoRA result of the run into folders under `out`; what was done, in lines.

    Raises InputError, TrainingFailed.
    """
    record = record_of(run)
    results = [result_of(run, record, stage) for stage in writing_stages(run, record, only=only)]
    for result in results:
        method = result.method
        if not method.merges:
            whole = "was trained whole: it is a plain model already"
            why = (method.why_not_merged or "cannot be merged") if method.is_module else whole
            raise InputError(
                f"{result.label} {why}: {result.folder}", allowed="LoRA results can be merged"
            )
    lines = []
    for result in results:
        target = out if len(results) == 1 else out / result.label
        board.label = result.label
        if target.exists() and any(target.iterdir()):
            raise InputError(
                f"{target} is not empty", where=str(target), hint="name another folder with --out"
            )
        merged = merge(run, result, device)
        with returning_routers(merged.model), waiting("saving the merged model"):
            merged.model.save_pretrained(str(target))
        merged.tokenizer.save_pretrained(str(target))
        if (settings := result.folder / "generation_config.json").is_file():
            (target / settings.name).write_text(text_of(settings), "utf-8")
        gaps = [vars(gap) for gap in merged.gaps]
        noted = {"from": str(result.folder), "merged_into": gaps[0]["base"], "rows": merged.rows}
        write_json(target / "merge.json", noted | {"gaps": gaps})
        first, *more = merged.lines(result.label)
        lines += [f"{first}, in {target}", *more]
    return lines


def merge(run: Path, result: Result, device: Any) -> Merged:
    """One result merged into the nearest base.

    Raises TrainingFailed if the merged model of plain float32 weights is another one.
    """
    stage, record = result.stage, record_of(run).stage(result.job.entry.name)
    samples = record.evaluation.samples if record and record.evaluation else ()
    texts = [
        f"{sample.prompt}\n{sample.expected or sample.tuned or ''}" for sample in samples[:ROWS]
    ] or GENERAL.read_text("utf-8").splitlines()[:ROWS]
    with waiting("loading the result"):
        model, tokenizer = load_result(result, device), load_tokenizer(result)
    options = {"return_tensors": "pt", "return_token_type_ids": False}
    rows = [
        tokenizer(text, truncation=True, max_length=512, **options).to(device) for text in texts
    ]
    unmerged = [_log_probs(model, row) for row in track(rows, "the unmerged model")]
    found: list[tuple[Gap, Any]] = []
    for name, adapted in _candidates(result, model, device):
        with waiting(f"merging into {name}"):
            merged = adapted.merge_and_unload()
        again = [_log_probs(merged, row) for row in track(rows, "the merged model")]
        pairs = list(zip(unmerged, again, strict=True))
        same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs)
        gap = Gap(
            base=name,
            greatest=max((difference(one, other) for one, other in pairs), default=0.0),
            same_choice=same / max(1, sum(map(len, unmerged))),
        )
        found.append((gap, merged))
    found.sort(key=lambda entry: entry[0].greatest)
    best, merged = found[0]
    exact = stage.weights_dtype == "float32" and "flash" not in stage.attention
    if stage.quantization is None and best.greatest > SAME and exact:
        raise TrainingFailed(
            f"the merged model differs from the unmerged one by {best.greatest:.3g} (limit"
            f" {SAME:g}): it is not saved",
            where=result.label,
            hint="keep the adapter, or report this",
        )
    gaps = [gap for gap, _ in found]
    return Merged(
        model=merged, tokenizer=tokenizer, gaps=gaps, rows=len(rows), held_out=bool(samples)
    )


def _candidates(result: Result, model: Any, device: Any) -> list[tuple[str, Any]]:
    """The module on what it can be merged into, by name. The model itself is used up."""
    name = f"the original weights ({result.stage.weights_dtype})"
    if result.stage.quantization is None:
        return [(name, model)]
    with waiting("loading the original weights"):
        original = load_result(result.unquantised(), device)
    written_out = model.unload().dequantize().to(original.dtype)
    return [
        (name, original),
        (f"the {result.stage.quantization} weights written out", load_module(result, written_out)),
    ]


def _log_probs(model: Any, row: Any) -> Any:
    import torch

    with evaluating(model):
        logits = model(**row, use_cache=False).logits[0, -TOKENS:]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


OPTIONS: dict[str, dict[str, Any]] = {
    "run": {"type": Path},
    "--out": {"type": Path, "required": True},
    "--only": {},
    "--device": {"default": "cpu"},
}
main = command(
    lambda given: print(
        *export(**vars(given) | {"device": torch_device(given.device)}), sep="\n", flush=True
    ),
    OPTIONS,
)

if __name__ == "__main__":
    sys.exit(main())
