"""README.md of a result: what it is, how well it does, how to load, merge and serve it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from advisor.ground.files import folder_name, shown_path
from advisor.ground.terminal import shown
from advisor.methods import Update, objective, update
from advisor.methods.model import SERVERS
from advisor.record.files import label
from advisor.record.run import ResolvedSettings, RunRecord, StageRecord, last_of_each_task
from advisor.record.stage import Evaluation, HeldOut
from advisor.render.result_commands import auto_class, forms_of, serve_command, served_stages
from advisor.render.run import what_was_trained
from advisor.render.verdict import verdict_of

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
    model = record.base_model(stage)
    # A folder of this machine means nothing on the hub.
    base = model if "/" in model and not model.startswith(("/", ".", "~")) else None
    rows = f" on {stage.data.train_rows:,} rows" if stage.data and stage.data.train_rows else ""
    lines = [
        "---",
        f"library_name: {'peft' if update(stage.update).is_module else 'transformers'}",
        *([f"base_model: {_yaml_word(base)}"] if base else []),
        "tags: [fine-tuned, finetune-advisor]",
        "---",
        "",
        f"# {_markdown(record.name)}: {_markdown(stage.name)}",
        "",
        f"{_markdown(what_was_trained(stage))} of {_markdown(base or Path(model).name)}{rows}.",
        *_card_origin(record),
        *_card_verdict(record, stage, folder),
        *_card_losses(stage.evaluation or Evaluation()),
        *_card_step(stage.held_out),
        *_card_caveats(stage),
        *_card_loading(record, stage),
        *_card_serving(record, stage),
        "",
        "| setting | value |",
        "| --- | --- |",
        *(
            f"| {_markdown(key)} | {_markdown(value)} |"
            for key, value in _card_settings(record.settings(stage)).items()
        ),
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in record.versions.items() if version
    )
    lines += ["", _markdown(f"Made with advise {record.advise_version}; {versions}.")]
    return "\n".join(lines) + "\n"


def _markdown(value: object) -> str:
    """A value as text on one line of Markdown: it starts no HTML, table cell or code."""
    line = shown(str(value)).replace("\n", "\\n")
    return re.sub(r"[|<`\[]", lambda found: f"&#{ord(found[0])};", line)


def _yaml_word(value: str) -> str:
    """A text as a YAML value that is nothing but this text."""
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else json.dumps(value)


def _card_origin(record: RunRecord) -> list[str]:
    """Under which licence the base came, and what names the data without showing any of it."""
    said = []
    if record.license:
        said.append(f"Licence of the base: {_markdown(record.license)}.")
    data = [digest for name, digest in record.input_digests.items() if name.startswith("data ")]
    if data:
        what = "digest" if len(data) == 1 else "digests"
        said.append(f"The data is not part of this folder; its {what}: {', '.join(data)}.")
    return ["", " ".join(said)] if said else []


def _card_losses(found: Evaluation) -> list[str]:
    before, after = found.holdout_loss_before, found.holdout_loss_after
    if before is None or after is None:
        return []
    losses = f"{before:.3f} before, {after:.3f} after"
    return ["", f"Loss on {found.rows or 0:,} held-out rows: {losses}."]


def _card_step(found: HeldOut | None) -> list[str]:
    """Which weights these are, where they are not those of the plan's last step."""
    if found is None or found.kept_step in (None, found.planned_steps):
        return []
    loss = "" if found.kept_step != found.best_step else ", where its held-out loss was lowest"
    return ["", f"Weights after step {found.kept_step} of {found.planned_steps}{loss}."]


def _card_caveats(stage: StageRecord) -> list[str]:
    method = update(stage.update)
    if not method.imports:
        return []
    what = method.result[:1].upper() + method.result[1:]
    return ["", f"{what}: `import {method.imports}` before loading it. {limits(method)}"]


def limits(method: Update) -> str:
    """What cannot be done with the result of an update, in a sentence; empty if everything can."""
    servers = [SERVER_NAMES[name] for name in SERVERS if name not in method.serves]
    parts = [
        *(["it cannot be merged"] if method.is_module and not method.merges else []),
        *([f"{' and '.join(servers)} cannot load it"] if servers else []),
    ]
    sentence = ", and ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _card_loading(record: RunRecord, stage: StageRecord) -> list[str]:
    method = update(stage.update)
    head, labels = "CausalLM", ""
    if objective(stage.objective).scores:
        head, labels = "SequenceClassification", ", num_labels=1"
    elif record.is_classifier(stage):
        head = "SequenceClassification"
    elif record.is_seq2seq(stage):
        head = "Seq2SeqLM"
    return [
        "",
        "## Load it",
        "",
        "```python",
        *([f"import {method.imports}"] if method.imports else []),
        f"from {auto_class(method)}For{head} as Loader",
        f'model = Loader.from_pretrained("THIS_FOLDER"{labels})',
        "```",
    ]


def _card_settings(settings: ResolvedSettings) -> dict[str, Any]:
    own = {
        "chat template": template_words(settings),
        "seq_len": settings.seq_len,
        "weights_dtype": settings.weights_dtype,
        "trainable_parameters": settings.trainable_parameters,
    }
    trl = {key: value for key, value in (settings.trl or {}).items() if key in CARD_KEYS}
    return {
        **{key: value for key, value in own.items() if value is not None},
        **trl,
        **settings.options,
    }


def template_words(settings: ResolvedSettings) -> str | None:
    """What who serves the result must know of its chat template; None: it is the base's own."""
    if settings.plain_template:
        return "plain, stored in chat_template.jinja: the base has none"
    if not settings.template:
        return None
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.template.items())
    return f"with {given}, stored in chat_template.jinja; with the base's own template, pass it"


def _card_verdict(record: RunRecord, stage: StageRecord, folder: Path) -> list[str]:
    """The verdict on this stage, without its command, which names folders of this machine."""
    found = verdict_of(record, folder)
    if found is None or stage not in last_of_each_task(record.stages):
        return []
    return ["", *(f"- {about.capitalize()}: {_markdown(said)}" for about, said in found.lines())]


def _card_serving(record: RunRecord, stage: StageRecord) -> list[str]:
    """How to merge and serve a result that writes, with what is known of each way.

    A card goes to the hub with its result, so no folder of this machine is named.
    """
    method = update(stage.update)
    if not record.writes(stage):
        return []
    whole, lines = THIS_FOLDER, []
    only = f" --only {shlex.quote(label(stage))}" if len(record.stages) > 1 else ""
    if method.is_module and method.merges:
        whole = "./merged"
        lines += [
            "",
            "## Merge it into its base",
            "",
            *_code(f"advise export RUN_FOLDER --to merged{only} --out {whole}"),
        ]
    if served := [one for one in served_stages(record) if one.name == stage.name]:
        command = serve_command(record, served, Path("RUN_FOLDER"))
        base = record.base_model(stage)
        for path, name in (
            (f"RUN_FOLDER/{stage.folder}", THIS_FOLDER),
            (shlex.quote(shown_path(Path(base))), BASE if Path(base).is_absolute() else base),
        ):
            command = command.replace(path, name)
        lines += [
            "",
            "## Serve it with vLLM, beside its base",
            "",
            *_code(command),
            "",
            "The name before the folder is the model name that requests ask for. `advise export"
            " RUN_FOLDER --to vllm` writes a script with it, the chat template and the end tokens."
            " vLLM needs an environment of its own.",
        ]
    if "ollama" in forms_of(record, stage):
        name = folder_name(str(record.name)) or "model"
        lines += [
            "",
            "## Serve it with Ollama or llama.cpp",
            "",
            *_code(
                f"advise export RUN_FOLDER --to ollama{only} --out ./ollama",
                f"ollama create {name} -f ./ollama/Modelfile",
            ),
            "",
            "It writes a .gguf file, which is compared with the model where llama.cpp is here, and"
            " a Modelfile with the chat template and the end tokens; `--to gguf` writes the file"
            " alone. Families of models that it does not know are refused.",
        ]
    if not method.is_module or method.merges:
        what = "The merged model" if method.is_module else "It"
        lines += [
            "",
            "## Serve it as a whole model",
            "",
            f"{what} is a folder in the layout of Hugging Face, which vLLM loads as it is:",
            "",
            *_code(f"vllm serve {whole}"),
        ]
    return lines


def _code(*lines: str) -> list[str]:
    """Lines of a shell; a name from outside neither ends the block nor opens a tag."""
    return ["```sh", *(shown(line).replace("`", "_").replace("<", "_") for line in lines), "```"]
