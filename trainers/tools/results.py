"""What runs left behind, loaded for use: one base for all modules that share it, whole models
beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from advisor.data.templates.bounded import TemplateLimit, bound_chat_templates
from advisor.data.templates.chat_text import template_file
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import PLAN_FILE, shown_path
from advisor.methods import update
from advisor.model_files.folder import base_faults, folder_faults
from advisor.model_files.hub_cache import is_hub_id
from advisor.plan.entries import entries, start_folder_of, whole_model
from advisor.plan.model import Plan
from advisor.plan.read import read_plan, resolve_path
from advisor.record.files import label, writing_stages
from advisor.record.files import record_of as record_of
from advisor.record.run import RunRecord, StageRecord
from trainers.start.attention import usable_here
from trainers.start.loading import keep_weights_unpacked, placement, written_out
from trainers.start.model_files import check_adapter, check_files, check_loaded, reading
from trainers.updates.experts import silence_routers

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained module or model of a run folder."""

    label: str
    folder: Path
    model: str  # the base it belongs to, or came from
    revision: str | None = None  # of a base on the hub
    update: str
    quantization: str | None
    double_quantization: bool
    weights_dtype: str
    attention: str
    trust_remote_code: bool = False

    @property
    def is_module(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()

    @property
    def base_key(self) -> tuple[Any, ...]:
        """Results with the same key share one base in memory."""
        form = (self.quantization, self.double_quantization, self.weights_dtype, self.attention)
        return (self.model, self.revision, *form)


def results_of(run: Path, *, prefix: str = "") -> list[Result]:
    """The last result of each task of a run, or of the run if it has no tasks.

    Raises InputError if nothing that writes is finished.
    """
    record = record_of(run)
    return [result_of(run, record, stage, prefix=prefix) for stage in writing_stages(run, record)]


def result_of(run: Path, record: RunRecord, stage: StageRecord, *, prefix: str = "") -> Result:
    """The result of a finished stage. Raises InputError if its base is not there."""
    settings, plan, base = record.settings(stage), plan_of(run), base_of(run, record, stage)
    return Result(
        label=f"{prefix}{label(stage)}",
        folder=run / stage.folder,
        model=base,
        revision=plan.revision if plan is not None and base == plan.model else None,
        update=stage.update,
        quantization=stage.quantization,
        double_quantization=settings.double_quantization is not False,
        weights_dtype=settings.weights_dtype or "float32",
        attention=settings.attention or "sdpa",
        trust_remote_code=plan is not None and plan.trust_remote_code,
    )


def plan_of(run: Path) -> Plan | None:
    """The plan in a run folder, if it can be read."""
    with suppress(AdviseError):
        return read_plan(run / PLAN_FILE)
    return None


def base_of(run: Path, record: RunRecord, stage: StageRecord) -> str:
    """The base of a result: the recorded one, or in a project that was moved since, the one
    that the plan in the run folder leads to.

    Raises InputError if it is in neither place.
    """
    recorded = record.base_model(stage)
    if is_hub_id(recorded) or Path(recorded).is_dir():
        return recorded
    with suppress(AdviseError):
        plan, place = read_plan(run / PLAN_FILE), run.resolve()
        entry = next((one for one in entries(plan) if one.name == stage.name), None)
        start = None if entry is None else start_folder_of(entry, run=place, folder=place)
        folder = whole_model(plan, start, run=place, folder=place)
        folder = folder or resolve_path(run / PLAN_FILE, plan.model)
        if folder.is_dir():
            return str(folder)
    raise InputError(
        f"the base of its result is no longer there: {recorded}",
        where=str(run),
        hint=f"put it back, or write its place (model:) into {shown_path(run / PLAN_FILE)}",
    )


@dataclass
class Loaded:
    """Results in memory. `use(label)` makes one of them, or the base, answer."""

    results: Sequence[Result]
    device: Any
    # base key -> the base, with every module on it; label -> a model that was trained whole
    models: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
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
        result = self.result(label)
        if label in self.whole:
            yield self.whole[label], self.tokenizers[label]
            return
        model = self.models[result.base_key]
        if label != BASE:
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
    loaded = Loaded(results=results, device=device)
    for result in results:
        check_files(str(result.folder), folder_faults)
        loaded.tokenizers[result.label] = load_tokenizer(result)
        if result.base_key not in loaded.models:
            loaded.models[result.base_key] = load_whole(result, result.model, device)
        if result.is_module:
            model = load_module(result, loaded.models[result.base_key])
            loaded.models[result.base_key] = model
        else:
            loaded.whole[result.label] = load_whole(result, str(result.folder), device)
    return loaded


def load_result(result: Result, device: Any, **head: Any) -> Any:
    """The model of one result, on a base of its own; arguments as those of `load_whole`."""
    check_files(str(result.folder), folder_faults)
    if result.is_module:
        return load_module(result, load_whole(result, result.model, device, **head))
    return load_whole(result, str(result.folder), device, **head)


def load_tokenizer(result: Result) -> Any:
    """The tokenizer that was saved with a result."""
    from transformers import AutoTokenizer

    with reading(result.folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(
            str(result.folder), trust_remote_code=result.trust_remote_code
        )


def load_module(result: Result, model: Any) -> Any:
    """The model with the module of a result on it, beside those that it has, ready to answer."""
    from peft import PeftModel
    from transformers import GenerationConfig

    if imports := update(result.update).imports:
        import_module(imports)  # registers the method with PEFT
    folder = str(result.folder)
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


def load_whole(
    result: Result, source: str, device: Any, *, head: str = "CausalLM", **extra: Any
) -> Any:
    """A whole model from its files, in the form that the result was trained in.

    Args:
        source: The base of the result, or its own folder.
        head: As in transformers' AutoModelFor...
        extra: Further arguments of `from_pretrained`.
    """
    import torch
    import transformers

    check_files(source, base_faults)
    dtype, is_base = getattr(torch, result.weights_dtype), source == result.model
    asked: dict[str, Any] = {"trust_remote_code": result.trust_remote_code}
    if is_base and result.revision is not None:
        asked["revision"] = result.revision
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": usable_here(result.attention, torch.device(device).type),
        **asked,
        **placement(torch.device(device)),
        **extra,
    }
    quantized = result.quantization if is_base else None
    with reading(source):
        if quantized is None:
            options |= written_out(source, **asked)
        else:
            bits = transformers.BitsAndBytesConfig(
                load_in_8bit=quantized == "int8",
                load_in_4bit=quantized == "nf4",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=result.double_quantization,
                bnb_4bit_compute_dtype=dtype,
            )
            options |= {"quantization_config": bits, "device_map": {"": device}}
        model, info = getattr(transformers, f"AutoModelFor{head}").from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_loaded(model, info, source)
    placed = keep_weights_unpacked(model if quantized else model.to(device))
    return silence_routers(placed).eval()


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
