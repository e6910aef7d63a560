"""Checks on what was saved: plain PEFT or transformers loads it, it answers like the trained model,
and it differs from its base.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.counting import counted
from advisor.ground.errors import TrainingFailed
from advisor.ground.files import text_of
from advisor.ground.types import FSDP
from advisor.record.stage import Check
from trainers.evaluation.loss import Sample
from trainers.job import Model
from trainers.job.evaluating import computes_in_16_bit, evaluating, rounded_to
from trainers.job.job import Job
from trainers.job.machine import free_host_bytes, held_bytes
from trainers.rows.packing import padded_inputs
from trainers.rows.sequences import lengths, values_of
from trainers.start.loading import is_spread, load_frozen

SEQ2SEQ, SCORES = "Seq2SeqLM", "SequenceClassification"
SHOWN_TOKENS = 64  # of one row: enough to tell two models apart
# Largest difference of log-probabilities that rounding explains: 16-bit and 4-bit kernels differ
# between calls.
SAME = 0.02
SAME_EXACT = 1e-3  # the same in float32
CHANGED = 1e-6
# Of the effect of the training: what rounding in another place may cost over all layers in 16 bit.
# SmolLM2-135M in bfloat16 differed by 0.57 where training had changed 27.
ROUNDED_SHARE = 0.05
ADAPTER_CONFIG = "adapter_config.json"
PLAIN = "the-same-without-peft"
# What PEFT's LoRA can do and W + s B A cannot say, by the field of its config.
NOT_PLAIN = {
    "use_dora": "DoRA",
    "rank_pattern": "ranks that differ between layers",
    "alpha_pattern": "scales that differ between layers",
    "lora_bias": "biases",
    "trainable_token_indices": "single trained tokens",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "activation by tokens",
    "target_parameters": "corrections of routed experts",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # values of PEFT's init_lora_weights
LIKELY = 10.0  # in nats: below that, rounding alone moves log-probabilities


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row that the checks give to a model, and the kind of head that answers."""

    row: Any  # anything with input_ids
    pad_id: int
    # CausalLM | Seq2SeqLM | SequenceClassification, as in transformers' AutoModelFor...
    head: str = "CausalLM"

    def answer(self, model: Model) -> Any:
        """Log-probabilities at T tokens of the row, the last ones or of an output the first, by
        vocabulary; or the scores of the head; float32 on the host.
        """
        import torch

        device = next(model.parameters()).device
        inputs = padded_inputs([self.row.input_ids], self.pad_id, device)
        if self.head == SEQ2SEQ:  # which a decoder writes
            inputs["labels"] = torch.tensor([list(self.row.labels[:SHOWN_TOKENS])], device=device)
        with evaluating(model):
            options = {} if self.head == SCORES else {"use_cache": False}
            logits = model(**inputs, **options).logits[0].float()
        if self.head == SCORES:
            return logits.cpu()
        shown_TV = logits if self.head == SEQ2SEQ else logits[-SHOWN_TOKENS:]
        return torch.log_softmax(shown_TV, dim=-1).cpu()

    @property
    def what(self) -> str:
        return "scores" if self.head == SCORES else "log-probabilities"

    def difference(self, one: Any, other: Any) -> float:
        """How far two answers differ; for scores above 1, as a share of the score."""
        if self.head != SCORES:
            return difference(one, other)
        return float(((one - other).abs() / one.abs().clamp(min=1)).max())


def probe_row(rows: Sequence[Any]) -> Any:
    """The training row for the checks: a short one with the most to learn."""
    short = lengths(rows).argsort(kind="stable")[: max(1, len(rows) // 2)]
    learned = values_of(rows, "learned")[short]
    most = short[learned == learned.max()]
    return rows[int(most[values_of(rows, "number")[most].argmin()])]


def difference(one: Any, other: Any) -> float:
    """The largest difference of two tables of log-probabilities, over tokens that are at all likely
    in either: measured against the most likely one, because none of a large vocabulary may be
    likely in itself.
    """
    likely = [table > table.max(dim=-1, keepdim=True).values - LIKELY for table in (one, other)]
    either = likely[0] | likely[1]
    # NaN is less than nothing: a table of them has no likely token, and is equal to none.
    return float((one - other).abs()[either].max()) if either.any() else math.inf


def check_saved(
    job: Job, model: Any, folder: Path, probe: Probe, before: Any,
    *, trained: Any | None = None, answered_in: str | None = None,
) -> list[Check]:  # fmt: skip
    """Load the saved result and compare it with the trained model and with the model before
    training.

    Raises TrainingFailed if the result differs from the trained model, or has no effect.

    Args:
        model: The trained model, in memory.
        folder: Where the result was saved.
        probe: The row to compare on.
        before: The answer to the probe before training.
        trained: The trained model's answer, if other processes trained it and `model` was read from
            the folder.
        answered_in: The dtype that it was computed in, if not that of the weights.
    """
    from peft import PeftModel

    is_read = trained is not None
    if trained is None:
        trained = probe.answer(model)
    exact = (
        job.stage.weights_dtype == "float32"
        and job.stage.quantization is None
        and not computes_in_16_bit(model)
        and answered_in is None
    )
    limit = SAME_EXACT if exact else SAME
    # FSDP trains with plain layers, and the model that is judged may have fused ones.
    sharded = is_read and job.plan.launch.strategy == FSDP and job.stage.precision != "pure"
    if sharded and not exact:
        limit = max(limit, ROUNDED_SHARE * probe.difference(trained, before))
    is_module = isinstance(model, PeftModel)
    how, loaded = "read from disk (no room for a second model)", None
    if _room_for_second(model, job):
        options = {"num_labels": model.config.num_labels} if probe.head == SCORES else {}
        device, path = next(model.parameters()).device, job.whole_model(folder)
        on = "PEFT on " if (folder / ADAPTER_CONFIG).is_file() else ""
        how = f"loaded by {on}AutoModelFor{probe.head}"
        # No name is left for the second model, whose memory the next checks may need.
        loaded = probe.answer(
            load_frozen(job, device, str(folder), base=path, head=probe.head, **options)
        )
    elif is_read:
        how, loaded = "read into the model before training", probe.answer(model)
    if loaded is not None:
        gaps = [] if answered_in else [probe.difference(trained, loaded)]
        if is_read:  # the model that is evaluated has to agree, too
            with rounded_to(model, answered_in) if answered_in else nullcontext():
                gaps.append(probe.difference(trained, probe.answer(model)))
        if answered_in:  # it is far from the trained one's own answer, and here in its own dtype
            gaps.append(probe.difference(loaded, probe.answer(model)))
        gap = max(gaps, key=lambda one: (one != one, one))  # one that is no number counts most
        same = gap <= limit
        found = f"{how}: {probe.what} differ by at most {gap:.2g} (limit {limit:g})"
    else:
        same = _same_tensors(model, folder)
        found = f"{how}: the saved tensors {'are' if same else 'are not'} those in memory"
    if not same:
        raise TrainingFailed(
            f"what was saved in {folder} is not the trained model: {found}",
            hint="the disk or a library damaged it; run the stage again",
        )
    with model.disable_adapter() if is_module else nullcontext():
        base = probe.answer(model) if is_module else before
    # A module may differ from its base before training: a prefix that starts from a real prompt
    # does.
    change = min(
        probe.difference(loaded if loaded is not None else trained, other)
        for other in (base, before)
    )
    what = "the saved adapter" if is_module else "training"
    text = f"{what} changes the {probe.what} of a training row by up to {change:.2g}"
    effect = Check("changes-the-base-model", change > CHANGED, text)
    if not effect.ok and job.max_steps is None:
        raise TrainingFailed(
            f"{what} has no effect: the answers are the same as before",
            hint=(
                "raise the learning_rate, or train more steps (a single step is still part of the"
                " warm-up)"
            ),
        )
    checks = [Check("saved-model-is-the-trained-one", same, found), effect]
    return checks + plain_lora(folder)


def _room_for_second(model: Model, job: Job) -> bool:
    """True if another copy of the model fits beside this one, on its device, with room to spare."""
    import torch

    if is_spread(model):
        return False
    need = 1.3 * held_bytes(model)
    device = next(model.parameters()).device
    if device.type == "cuda":
        return bool(need < torch.cuda.mem_get_info(device)[0])
    return bool(2 * need < free_host_bytes())


def _same_tensors(model: Any, folder: Path) -> bool:
    """True if the tensors on disk equal those in memory; one at a time, to save memory. Experts of
    a mixture, which transformers saves under other names than it keeps them, are not compared.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    is_module = hasattr(model, "peft_config")
    mine = get_peft_model_state_dict(model) if is_module else model.state_dict()
    seen = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in set(file.keys()) & mine.keys():
                seen += 1
                if not torch.equal(file.get_tensor(name), mine[name].cpu()):
                    return False
    return seen == len(mine) if is_module else seen > 0


def plain_lora(folder: Path) -> list[Check]:
    """Whether vLLM and llama.cpp, which know nothing of PEFT, apply the saved LoRA as PEFT does: as
    W + s B A. [] for other results.
    """
    path = folder / ADAPTER_CONFIG
    config = json.loads(text_of(path)) if path.is_file() else {}
    if config.get("peft_type") != "LORA":
        return []
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        text = f"PEFT changes the base by its start, {start}: other engines apply another model"
        return [Check(PLAIN, False, f"{text}; merge the result, or serve it with PEFT")]
    others = [words for field, words in NOT_PLAIN.items() if config.get(field)]
    others += ["biases"] if config.get("bias") not in (None, "none") else []
    if others:
        text = (
            f"{' and '.join(dict.fromkeys(others))} cannot be applied as W + BA, as vLLM and"
            " llama.cpp do; merge the result, or serve it with PEFT"
        )
        return [Check(PLAIN, True, text)]
    text = "can be applied as W + BA, as vLLM and llama.cpp do"
    if config.get("modules_to_save"):
        text += f"; {', '.join(config['modules_to_save'])} saved whole: most servers want it merged"
    if config.get("use_rslora"):
        text += "; llama.cpp scales by alpha / rank and knows no rslora: merge it first there"
    return [Check(PLAIN, True, text)]


def check_stops(
    job: Job, tuned: Sequence[Sample], base: Sequence[Sample], limit: int
) -> list[Check]:
    """Whether answers end by themselves, with a stop token, before they are cut off.

    Raises TrainingFailed if all answers of the base did and none of the tuned model does.

    Args:
        limit: How many tokens an answer may have.
    """
    if not tuned:
        return []
    ended = sum(sample.stopped for sample in tuned)
    end = "end by themselves" if len(tuned) > 1 else "ends by itself"
    text = f"{ended} of {counted(len(tuned), 'sample answer')} {end} within {limit} tokens"
    if base:
        text += f" (of the base model's: {sum(sample.stopped for sample in base)})"
    # A trial of a few steps has not learned to stop yet.
    enough = ended > (0 if job.max_steps is not None else len(tuned) / 2)
    if not enough and job.max_steps is not None:
        text += "; the others run on until they are cut off. After so few steps that says little"
    elif not enough:
        text += (
            "; the others run on until they are cut off: the model has not learned where an answer"
            " ends. Train longer or on more rows, and check that the answers in the data are whole"
        )
    check = Check("answers-end-by-themselves", enough, text)
    if not ended and job.max_steps is None and base and all(sample.stopped for sample in base):
        raise TrainingFailed(
            "the result cannot end an answer: each of its sample answers runs on until it is cut"
            " off, and each of the base model's ends by itself",
            hint=(
                "check that the answers in the data are complete (truncation), and train on more"
                " rows"
            ),
        )
    return [check]
