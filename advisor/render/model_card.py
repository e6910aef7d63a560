"""README.md of a result: what it is, how well it does, how to load, merge and serve it.

A card goes to the hub with its result, so it names no folder of this machine.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from advisor.ground.files import folder_name, shown_path
from advisor.methods import Update, objective, update
from advisor.methods.model import SERVERS
from advisor.record.files import label
from advisor.record.run import ResolvedSettings, RunRecord, StageRecord, last_of_each_task
from advisor.record.stage import Evaluation
from advisor.render.markup import render_markdown
from advisor.render.result_commands import auto_class, forms_of, serve_command, served_stages
from advisor.render.run import verdict_of, what_was_trained

THIS_FOLDER, BASE = "THIS_FOLDER", "BASE_MODEL"  # for whoever reads it elsewhere
SERVER_NAMES = {"transformers": "transformers", "vllm": "vLLM", "ollama": "Ollama"}
CARD_KEYS = (  # of TRL's settings, those that the model card names
    "learning_rate",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
)


def model_card(record: RunRecord, stage: StageRecord, folder: Path = Path()) -> str:
    """README.md of a result in a run folder, with the hub's front matter."""
    model, method = record.base_model(stage), update(stage.update)
    evaluation, held_out = stage.evaluation or Evaluation(), stage.held_out
    verdict = verdict_of(record, folder) if stage in last_of_each_task(record.stages) else None
    is_kept_early = held_out and held_out.kept_step not in (None, held_out.planned_steps)
    writes, scores = record.writes(stage), objective(stage.objective).scores
    whole = THIS_FOLDER
    if method.is_module:
        whole = "./merged" if method.merges else ""
    head = "CausalLM"
    if scores or record.is_classifier(stage):
        head = "SequenceClassification"
    elif record.is_seq2seq(stage):
        head = "Seq2SeqLM"
    values = {
        "record": record,
        "stage": stage,
        "method": method,
        "library": "peft" if method.is_module else "transformers",
        # A folder of this machine means nothing on the hub.
        "base": model if "/" in model and not model.startswith(("/", ".", "~")) else None,
        "model_name": Path(model).name,
        "trained": what_was_trained(stage),
        "rows": stage.data.train_rows if stage.data else None,
        "origin": _origin(record),
        "verdict": verdict.lines() if verdict else (),  # its command names folders of this machine
        "loss_before": evaluation.holdout_loss_before,
        "loss_after": evaluation.holdout_loss_after,
        "held_out_rows": f"{evaluation.rows or 0:,}",
        "kept_step": held_out if is_kept_early else None,
        "limits": limits(method),
        "auto_class": auto_class(method),
        "head": head,
        "scores": scores,
        "only": f" --only {shlex.quote(label(stage))}" if len(record.stages) > 1 else "",
        "merges": writes and method.is_module and method.merges,
        "vllm": _serve_beside_base(record, stage),
        "for_ollama": "ollama" in forms_of(record, stage),
        "ollama_name": folder_name(str(record.name)) or "model",
        "whole": whole if writes else "",
        "settings": _settings(record.settings(stage)),
        "versions": [f"{name} {found}" for name, found in record.versions.items() if found],
    }
    return render_markdown("model_card.md", values)


def _origin(record: RunRecord) -> list[str]:
    """Under which licence the base came, and what names the data without showing any of it."""
    said = [f"Licence of the base: {record.license}."] if record.license else []
    data = [digest for name, digest in record.input_digests.items() if name.startswith("data ")]
    if data:
        what = "digest" if len(data) == 1 else "digests"
        said.append(f"The data is not part of this folder; its {what}: {', '.join(data)}.")
    return said


def limits(method: Update) -> str:
    """What cannot be done with the result of an update, in a sentence; empty if everything can."""
    servers = [SERVER_NAMES[name] for name in SERVERS if name not in method.serves]
    parts = ["it cannot be merged"] if method.is_module and not method.merges else []
    parts += [f"{' and '.join(servers)} cannot load it"] if servers else []
    sentence = ", and ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _settings(settings: ResolvedSettings) -> dict[str, Any]:
    own = {
        "chat template": template_words(settings),
        "seq_len": settings.seq_len,
        "weights_dtype": settings.weights_dtype,
        "trainable_parameters": settings.trainable_parameters,
    }
    known = {key: value for key, value in own.items() if value is not None}
    trl = {key: value for key, value in (settings.trl or {}).items() if key in CARD_KEYS}
    return {**known, **trl, **settings.options}


def template_words(settings: ResolvedSettings) -> str | None:
    """What who serves the result must know of its chat template; None: it is the base's own."""
    if settings.plain_template:
        return "plain, stored in chat_template.jinja: the base has none"
    if not settings.template:
        return None
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.template.items())
    return f"with {given}, stored in chat_template.jinja; with the base's own template, pass it"


def _serve_beside_base(record: RunRecord, stage: StageRecord) -> str:
    """The line of vLLM for a module that writes, with words for folders; empty if it has none."""
    served = [one for one in served_stages(record) if one.name == stage.name]
    if not served or not record.writes(stage):
        return ""
    base = record.base_model(stage)
    command = serve_command(record, served, Path("RUN_FOLDER"))
    command = command.replace(f"RUN_FOLDER/{stage.folder}", THIS_FOLDER)
    shown = shlex.quote(shown_path(Path(base)))
    return command.replace(shown, BASE if Path(base).is_absolute() else base)
