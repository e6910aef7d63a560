"""A LoRA result merged into its base: one plain model, compared with the unmerged one before anyone
relies on it.

Run: python -P -m trainers.tools.merge RUN --out FOLDER [--only NAME] [--device cuda]

A 4-bit base has two candidates: the original 16-bit weights, and the 4-bit ones written out. The
trained module saw the second, servers usually hold the first; both gaps are measured, and the
nearer one is saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.progress import board, track, waiting
from advisor.methods import update
from trainers.evaluation.saved_result import difference
from trainers.job.evaluating import evaluating
from trainers.job.files import write_json
from trainers.job.machine import torch_device
from trainers.start.model_files import reading
from trainers.tools.command import run_command
from trainers.tools.results import Result, load_results, record_of, results_of
from trainers.updates.experts import returning_routers

ROWS = 8
TOKENS = 64  # of each row
SAME = 0.05  # greatest difference of log-probabilities that rounding of merged weights explains


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far a merged model is from the unmerged one, on held-out rows."""

    base: str  # what it was merged into
    greatest: float  # difference of log-probabilities
    same_choice: float  # share of positions with the same most likely token


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.tools.merge",
        description="Merge LoRA results into their base. `advise export` calls this.",
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)

    def work() -> None:
        device = torch_device(given.device)
        for line in export(given.run, given.out, only=given.only, device=device):
            print(line, flush=True)

    return run_command(work)


def export(run: Path, out: Path, *, only: str | None, device: Any) -> list[str]:
    """Merge every LoRA result of the run into folders under `out`; what was done, in lines.

    Raises InputError, TrainingFailed.
    """
    results = [result for result in results_of(run) if only in (None, result.label)]
    if not results:
        raise InputError(
            "the run has no such result",
            where=f"--only {only}",
            allowed=", ".join(result.label for result in results_of(run)),
        )
    for result in results:
        if not update(result.update).merges:
            raise InputError(
                f"{result.label} {_why_not(result)}: {result.folder}",
                allowed="LoRA results can be merged",
            )
    lines = []
    for result in results:
        target = out if len(results) == 1 else out / result.label
        board.label = result.label
        if target.exists() and any(target.iterdir()):
            raise InputError(
                f"{target} is not empty", where=str(target), hint="name another folder with --out"
            )
        lines += _merge_one(run, result, target, device)
    return lines


def _why_not(result: Result) -> str:
    """Why a result cannot be merged into its base: '... is a prefix, which ...'."""
    method = update(result.update)
    if not method.is_module:
        return "was trained whole: it is a plain model already"
    return method.why_not_merged or "cannot be merged"


def _merge_one(run: Path, result: Result, target: Path, device: Any) -> list[str]:
    with waiting("loading the result"):
        loaded = load_results([result], device)
    texts = held_out_texts(run, result)
    with loaded.use(result.label) as (model, tokenizer):
        rows = [
            tokenizer(
                text,
                return_tensors="pt",
                truncation=True,
                max_length=512,
                return_token_type_ids=False,
            ).to(device)
            for text in texts
        ]
        unmerged = [_log_probs(model, row) for row in track(rows, "the unmerged model")]
    found: list[tuple[Gap, Any]] = []
    for name, base in _bases(loaded, result, device):
        from peft import PeftModel

        with reading(result.folder, "the adapter"):
            adapted = PeftModel.from_pretrained(base, str(result.folder))
        with waiting(f"merging into {name}"):
            merged = adapted.merge_and_unload()
        again = [_log_probs(merged, row) for row in track(rows, "the merged model")]
        found.append((_gap(name, unmerged, again), merged))
    best, merged = min(found, key=lambda entry: entry[0].greatest)
    with returning_routers(merged), waiting("saving the merged model"):
        merged.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    if (result.folder / "generation_config.json").is_file():
        (target / "generation_config.json").write_text(
            (result.folder / "generation_config.json").read_text("utf-8"), "utf-8"
        )
    record = {
        "from": str(result.folder),
        "merged_into": best.base,
        "rows": len(rows),
        "gaps": [vars(gap) for gap, _ in found],
    }
    write_json(target / "merge.json", record)
    lines = [f"{result.label}: merged into {best.base}, in {target}"]
    lines += [
        f"  {gap.base}: log-probabilities of {len(rows)} held-out rows differ by at most"
        f" {gap.greatest:.3g}, the most likely token is the same at {gap.same_choice:.1%} of places"
        for gap, _ in found
    ]
    exact = result.weights_dtype == "float32" and "flash" not in result.attention
    if result.quantization is None and best.greatest > SAME and exact:
        raise TrainingFailed(
            f"the merged model differs from the unmerged one by {best.greatest:.3g} (limit"
            f" {SAME:g}): {target} is kept for inspection",
            hint="keep the adapter, or report this",
        )
    if best.greatest > SAME:
        lines.append(
            "  not the same model: 16-bit and 4-bit weights round differently; serve the adapter on"
            " its own base where the answers must be those of the test"
        )
    return lines


def _bases(loaded: Any, result: Result, device: Any) -> list[tuple[str, Any]]:
    """What the module can be merged into, by name. The base in memory is used up."""
    with waiting("loading the original weights"):
        plain = load_results([replace(result, quantization=None)], device)
    original = plain.models[replace(result, quantization=None).base_key].unload()
    name = f"the original weights ({result.weights_dtype})"
    if result.quantization is None:
        return [(name, original)]
    written_out = loaded.models[result.base_key].unload().dequantize()
    return [
        (name, original),
        (f"the {result.quantization} weights written out", written_out.to(original.dtype)),
    ]


def held_out_texts(run: Path, result: Result) -> list[str]:
    """Held-out prompts with their expected answers, from the samples in run.json.

    Raises InputError if the run was never evaluated.
    """
    stages = record_of(run).stages
    stage = next(stage for stage in stages if run / stage.folder == result.folder)
    if stage.evaluation is None or not stage.evaluation.samples:
        raise InputError(
            "there are no held-out rows to compare on (the run was not judged)",
            where=result.label,
            hint="run it without --no-judge and with holdout above 0",
        )
    samples = stage.evaluation.samples[:ROWS]
    return [f"{sample.prompt}\n{sample.expected or sample.tuned or ''}" for sample in samples]


def _log_probs(model: Any, row: Any) -> Any:
    import torch

    with evaluating(model):
        logits = model(**row, use_cache=False).logits[0, -TOKENS:]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _gap(name: str, unmerged: Sequence[Any], merged: Sequence[Any]) -> Gap:
    greatest, same, places = 0.0, 0, 0
    for one, other in zip(unmerged, merged, strict=True):
        greatest = max(greatest, difference(one, other))
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        places += one.shape[0]
    return Gap(base=name, greatest=greatest, same_choice=same / max(1, places))


if __name__ == "__main__":
    sys.exit(main())
