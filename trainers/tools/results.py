"""What runs left behind, loaded for use: one base for all modules that share it, whole models
beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.data.templates.bounded import TemplateLimit, bound_chat_templates
from advisor.data.templates.chat_text import template_file
from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE
from advisor.methods import update
from advisor.methods.model import Update
from advisor.model_files.folder import folder_faults
from advisor.plan.entries import entries
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.record.files import label, writing_stages
from advisor.record.files import record_of as record_of
from advisor.record.run import RunRecord, StageRecord
from trainers.job.job import Job
from trainers.start.kernels import usable_here
from trainers.start.loading import load_base, read_adapter_config, register_method
from trainers.start.model_files import check_adapter, check_files, reading

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained module or model of a run folder."""

    label: str
    folder: Path
    base: str  # folder or hub id of what the module belongs to, or the model came from
    job: Job  # of the stage that made it, by the plan in the run folder

    @property
    def stage(self) -> Stage:
        """How it was trained, and is loaded."""
        return self.job.stage

    @property
    def method(self) -> Update:
        return update(self.stage.update)

    @property
    def is_module(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()

    @property
    def base_key(self) -> tuple[Any, ...]:
        """Results with the same key share one base in memory."""
        stage, plan = self.stage, self.job.plan
        form = (stage.quantization, stage.double_quantization, stage.weights_dtype, stage.attention)
        return (self.base, plan.revision, *form)

    def unquantised(self) -> Result:
        """The same on the original weights of its base."""
        entry = self.job.entry
        plain = structs.replace(entry, stage=structs.replace(entry.stage, quantization=None))
        return replace(self, job=replace(self.job, entry=plain))


def results_of(run: Path, prefix: str = "") -> list[Result]:
    """The last result of each task of a run, or of the run if it has no tasks.

    Raises InputError if nothing that writes is finished.
    """
    record = record_of(run)
    return [result_of(run, record, stage, prefix) for stage in writing_stages(run, record)]


def result_of(run: Path, record: RunRecord, stage: StageRecord, prefix: str = "") -> Result:
    """The result of a finished stage. Raises InputError if its plan or its base is not there."""
    plan = read_plan(run / PLAN_FILE)
    entry = next((one for one in entries(plan) if one.name == stage.name), None)
    if entry is None:
        raise InputError(
            f"it has no stage {stage.name}, whose result is here", where=str(run / PLAN_FILE)
        )
    entry = structs.replace(entry, stage=structs.replace(entry.stage, kernels="none"))
    # What `auto` was on the machine that trained.
    attention = record.settings(stage).attention or entry.stage.attention
    whole = run.resolve()  # ../.. too, as the card of a result names it
    job = Job(plan=plan, entry=entry, folder=whole, run=whole, attention=attention)
    try:
        base = job.whole_model(job.start)
    except InputError as error:
        hint = "put it back, or write its place (model:) there"
        raise InputError(error.faults[0].what, where=str(run / PLAN_FILE), hint=hint) from None
    name = f"{prefix}{label(stage)}"
    return Result(label=name, folder=run / stage.folder, base=base, job=job)


@dataclass
class Loaded:
    """Results in memory. `use(label)` makes one of them, or the base, answer."""

    results: Sequence[Result]
    device: Any
    # By label; modules of one base are on one model, which is that base's, too.
    models: dict[str, Any] = field(default_factory=dict)
    tokenizers: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return [BASE, *(result.label for result in self.results)]

    def result(self, label: str) -> Result:
        """The result of that name; of the base the first one, which belongs to it."""
        return next((one for one in self.results if one.label == label), self.results[0])

    @contextmanager
    def use(self, label: str) -> Iterator[tuple[Any, Any]]:
        """The model and the tokenizer, with this module on (or every module off, for the base)."""
        result, model = self.result(label), self.models[label]
        if label != BASE and result.is_module:
            model.set_adapter(label)
        is_off = label == BASE and hasattr(model, "disable_adapter")
        with model.disable_adapter() if is_off else nullcontext():
            yield model, self.tokenizers[result.label]


def load_results(results: Sequence[Result], device: Any) -> Loaded:
    """Every result, each base once.

    Raises InputError where two have one name or a base is not there.
    """
    names = [BASE, *(result.label for result in results)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two results are called {', '.join(twice)}", hint="give the runs names of their own"
        )
    loaded, bases = Loaded(results=results, device=device), dict[tuple[Any, ...], Any]()
    for result in results:
        check_files(str(result.folder), folder_faults)
        loaded.tokenizers[result.label] = load_tokenizer(result)
        key = result.base_key
        if key not in bases:
            bases[key] = load_whole(result, result.base, device)
        if result.is_module:
            bases[key] = loaded.models[result.label] = load_module(result, bases[key])
        else:
            loaded.models[result.label] = load_whole(result, str(result.folder), device)
    loaded.models[BASE] = bases[results[0].base_key]
    return loaded


def load_result(result: Result, device: Any, **head: Any) -> Any:
    """The model of one result, on a base of its own; `head` and more as `load_base` takes them."""
    check_files(str(result.folder), folder_faults)
    if result.is_module:
        return load_module(result, load_whole(result, result.base, device, **head))
    return load_whole(result, str(result.folder), device, **head)


def load_tokenizer(result: Result) -> Any:
    """The tokenizer that was saved with a result."""
    from transformers import AutoTokenizer

    with reading(result.folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(
            str(result.folder), trust_remote_code=result.job.plan.trust_remote_code
        )


def load_module(result: Result, model: Any) -> Any:
    """The model with the module of a result on it, beside those that it has, ready to answer."""
    from peft import PeftModel
    from transformers import GenerationConfig

    folder = str(result.folder)
    register_method(read_adapter_config(result.folder))
    with reading(folder, "the adapter"):
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=result.label)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=result.label)
        check_adapter(model, result.folder, name=result.label)
    if (result.folder / "generation_config.json").is_file():
        with reading(folder, "generation_config.json"):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_whole(result: Result, source: str, device: Any, **head: Any) -> Any:
    """A whole model from its files, in the form that the result was trained in.

    Args:
        source: The base of the result, or its own folder.
        head: Further arguments of `load_base`.
    """
    import torch

    place = torch.device(device)
    job = replace(result.job, attention=usable_here(result.stage.attention, place.type))
    return load_base(job, place, source, new_head=source == result.base, **head).eval()


def prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, is_answered: bool = False
) -> Any:
    """The conversation as a batch of one, by the tokenizer's template; without one, the last
    message as plain text.

    Raises InputError where the template is broken or does not end.

    Args:
        is_answered: The last message is an answer, so that no beginning of one follows.
    """
    bound_chat_templates()
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer(messages[-1]["content"], return_tensors="pt", return_token_type_ids=False)
    file = template_file(Path(tokenizer.name_or_path))
    try:
        with reading(file, "the chat template"):
            return tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=not is_answered,
                return_tensors="pt",
                return_dict=True,
            )
    except TemplateLimit as error:
        raise error.of(str(file)) from None
