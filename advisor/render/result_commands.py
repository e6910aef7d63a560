"""Lines to paste that use a result: ask it, sort with it, score with it, merge it, serve it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from advisor.ground.files import shown_path
from advisor.ground.units import format_gib
from advisor.methods import Update, objective, update
from advisor.plan.vllm import VllmServer
from advisor.record.files import label
from advisor.record.run import DONE, RunRecord, StageRecord, last_of_each_task

GREETING = '[{"role": "user", "content": "Hello"}'
# Python on one line: {load} imports the model's class `M` and the tokenizer's `T`.
SORT = (
    'from transformers import pipeline; print(pipeline("text-classification", {folder})'
    '("Your text"))'
)
REWRITE = (
    "{load}; t = T.from_pretrained(f); print(t.decode(M.from_pretrained(f)"
    '.generate(**t("Your text", return_tensors="pt", return_token_type_ids=False),'
    " max_new_tokens=128)[0], skip_special_tokens=True))"
)
SCORE = (
    "{first}{load}; print(M.from_pretrained(f, num_labels=1)(**T.from_pretrained(f)"
    '.apply_chat_template({greeting}, {{"role": "assistant", "content": "Good morning!"}}],'
    ' return_tensors="pt", return_dict=True)).logits[0, 0].item())'
)
ASK = (
    '{load}; print(pipeline("text-generation", {model})({greeting}])[0]["generated_text"][-1]'
    '["content"])'
)


def use_of(record: RunRecord, stage: StageRecord, result: str) -> tuple[str, str]:
    """What a result is for, and the line of Python that does it once."""
    if record.is_classifier(stage):
        return "Sort a text", _python(SORT.format(folder=_quoted(result)))
    method = update(stage.update)
    first = f"import {method.imports}; " if method.imports else ""  # before PEFT loads the result
    if record.is_seq2seq(stage):
        load = _load(f"{auto_class(method)}ForSeq2SeqLM", result)
        return "Rewrite a text", _python(REWRITE.format(load=load))
    if objective(stage.objective).scores:
        load = _load(f"{auto_class(method)}ForSequenceClassification", result)
        return "Score an answer", _python(SCORE.format(first=first, load=load, greeting=GREETING))
    return "Ask it from Python", ask_command(result, stage.update)


def _load(loader: str, result: str, more: str = "") -> str:
    tokenizer = f"from transformers import AutoTokenizer as T{more}"
    return f"from {loader} as M; {tokenizer}; f = {_quoted(result)}"


def auto_class(method: Update) -> str:
    """What loads the result of an update: 'peft import AutoPeftModel'."""
    return "peft import AutoPeftModel" if method.is_module else "transformers import AutoModel"


def ask_command(result: str, update_name: str) -> str:
    """One line that loads the result with transformers (and PEFT) and lets it answer."""
    load, model = "from transformers import pipeline", _quoted(result)
    if imports := update(update_name).imports:  # transformers alone cannot load it
        loaded = _load("peft import AutoPeftModelForCausalLM", result, ", pipeline")
        load, model = (
            f"import {imports}; {loaded}",
            "M.from_pretrained(f), tokenizer=T.from_pretrained(f)",
        )
    return _python(ASK.format(load=load, model=model, greeting=GREETING))


def _python(code: str) -> str:
    """The line that runs it: by `python` if that is this interpreter, which has the packages."""
    here = shutil.which("python") == sys.executable
    interpreter = "python" if here else shown_path(Path(sys.executable))
    return f"{shlex.quote(interpreter)} -c {shlex.quote(code)}"


def forms_of(record: RunRecord, stage: StageRecord) -> tuple[str, ...]:
    """The forms that `advise export` has of a result that answers, the usual first; () if none."""
    if not record.writes(stage):
        return ()
    method = update(stage.update)
    if not method.is_module:
        return ("ollama", "vllm", "gguf")
    return ("ollama", "vllm", "gguf", "merged") if method.merges else ()


def export_command(form: str, folder: Path) -> str:
    """The line that takes a result to other programs, in one of its forms."""
    return f"advise export {shlex.quote(shown_path(folder))} --to {form}"


def spare_of(record: RunRecord, folder: Path) -> tuple[str, str] | None:
    """What the checkpoints of a finished run take, and the line that removes them: using the model
    needs none. None if there are none.
    """
    found = [folder / stage.folder / "checkpoints" for stage in record.stages]
    there = [path for path in found if path.is_dir()]
    size = sum(file.stat().st_size for path in there for file in path.rglob("*") if file.is_file())
    if record.status != DONE or not size:
        return None
    what = f"Free {format_gib(size)} of checkpoints, which using the model does not need"
    return what, f"rm -r {' '.join(shlex.quote(shown_path(path)) for path in there)}"


def served_stages(record: RunRecord) -> list[StageRecord]:
    """The stages whose modules vLLM loads beside their base, the last of each task."""
    return [
        stage
        for stage in last_of_each_task(filter(record.writes, record.stages))
        if (method := update(stage.update)).is_module and "vllm" in method.serves
    ]


def serve_command(record: RunRecord, served: Sequence[StageRecord], folder: Path) -> str:
    """The vLLM server for several modules on one base, each under its own name."""
    options = [(record.settings(stage).options, update(stage.update)) for stage in served]
    base = record.base_model(served[0])
    # vLLM takes the base's template for its modules, unless it is told another.
    settings = record.settings(served[0])
    stored = shown_path(folder / served[0].folder / "chat_template.jinja")
    server = VllmServer(
        model=shown_path(Path(base)) if Path(base).is_absolute() else base,
        modules=[(label(stage), shown_path(folder / stage.folder)) for stage in served],
        rank=max(
            (rank for found, method in options if (rank := found.get(method.size_key))),
            default=None,
        ),
        template=stored if settings.plain_template or settings.template else None,
    )
    return server.line()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
