"""Tokenizer and model of a stage, with explicit dtype, quantization, device and attention, and with
the module of an earlier stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import text_of
from advisor.methods import methods
from advisor.methods.kernels import is_flash
from advisor.methods.model import Update as UpdateValue
from advisor.methods.optimizers import optimizer
from advisor.model_files.config import is_number
from advisor.model_files.folder import adapter_faults, base_faults, tokenizer_faults
from advisor.plan.checks import optimizer_faults
from trainers.job import Device, Model, Tokenizer
from trainers.job.job import JUDGE, Job
from trainers.rows.template_arguments import give_arguments
from trainers.start.kernels import bitsandbytes_faults, fuse_layers, kernel_faults
from trainers.start.model_files import (
    check_adapter,
    check_files,
    check_loaded,
    model_config,
    reading,
)
from trainers.step.settings import autocast_dtype
from trainers.step.sharding import is_sharded, one_reads_for_all, reads_once, unread
from trainers.step.trained_dtype import dither
from trainers.updates import Update
from trainers.updates.experts import find_experts, is_mixture, packed_size, silence_routers

PREFIX = "PREFIX_TUNING"  # PEFT's name
WEIGHTS_SHARE = 0.9  # of a GPU's free memory; the rest is for activations and answers


def load_tokenizer(job: Job, *, writes: bool = True) -> Tokenizer:
    """The tokenizer of the folder that this stage continues from, else of the plan's model, with a
    padding token.

    Raises InputError if it cannot be read, if it has no end token, or if its chat template does not
    read an argument that the plan gives.

    Args:
        writes: The model generates text, so that an end token is needed.
    """
    start = job.start
    is_own = start is not None and (start / "tokenizer_config.json").is_file()
    source = str(start) if is_own else job.base_model
    tokenizer = read_tokenizer(job, source)
    longest = getattr(tokenizer, "model_max_length", 0)
    if not is_number(longest):
        raise InputError(
            f"tokenizer_config.json: model_max_length is {str(longest)[:60]}",
            where=source,
            allowed="a number",
        )
    give_arguments(tokenizer, job.plan.template, model=source)
    end = tokenizer.eos_token_id
    if end is None and (writes or tokenizer.pad_token_id is None):
        lacks = "end token (eos_token)" if writes else "padding token and no end token"
        why = ": without one no model learns to stop" if writes else ""
        raise InputError(
            f"the tokenizer of {source} has no {lacks}",
            hint=f"set {'eos_token' if writes else 'pad_token'} in its tokenizer_config.json{why}",
        )
    if tokenizer.pad_token_id is None:
        # Labels are built before padding, so a padding token equal to the end token masks nothing.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def read_tokenizer(job: Job, source: str, what: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of a folder or hub id. Raises InputError if its files cannot be read."""
    from transformers import AutoTokenizer

    revision = job.plan.revision if source == job.base_model else None
    check_files(source, tokenizer_faults)
    with reading(source, what):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=job.plan.trust_remote_code
        )
    return tokenizer


def dtype_faults(job: Job, device: Device) -> list[Fault]:
    """The dtypes and kernels of the stage that this device does not have."""
    import torch

    stage, on_gpu = job.stage, device.type == "cuda"
    dtypes = (stage.weights_dtype, stage.precision)
    said: list[tuple[str, str]] = []  # (what, allowed)
    if stage.weights_dtype == "float16" and device.type in ("cpu", "mps"):
        said.append(("float16 weights need a CUDA GPU", "weights_dtype: float32 or bfloat16 here"))
    elif dtypes == ("float16", "pure"):
        what = "float16 without loss scaling loses small gradients"
        said.append((what, "precision: mixed, or weights_dtype: bfloat16"))
    if is_flash(stage.attention) and dtypes == ("float32", "pure"):
        what = f"{stage.attention} computes in 16 bits, and this stage is float32 alone"
        said.append((what, "precision: mixed, weights_dtype: bfloat16, or attention: sdpa"))
    if (
        on_gpu
        and stage.weights_dtype == "bfloat16"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        allowed = "weights_dtype: float16 with precision: mixed, or float32"
        said.append(("this GPU has no bfloat16", allowed))
    found = [Fault(where=f"stage {stage.name}", what=one, allowed=two) for one, two in said]
    found += kernel_faults(stage, device)
    if on_gpu and (stage.quantization or optimizer(stage.optimizer).library == "bitsandbytes"):
        found += bitsandbytes_faults(stage=stage.name)
    return [*found, *optimizer_faults(stage, device.type)]


def quantization_config(job: Job, config: Any, *, is_trained: bool) -> Any | None:
    """How bitsandbytes quantises the frozen base; None if it does not.

    The other weights keep `weights_dtype`, which is also the dtype of computation. Routed experts
    are packed, too, but not where a model is divided only after it has loaded.
    """
    import torch
    from transformers import BitsAndBytesConfig

    stage = job.stage
    if stage.quantization == "nf4":
        options = {
            "bnb_4bit_use_double_quant": stage.double_quantization is not False,
            "bnb_4bit_compute_dtype": getattr(torch, stage.weights_dtype),
        }
        stored = stored_format(config)
        if is_sharded(job):
            # Only packed weights that are stored as floats can be divided among processes.
            options["bnb_4bit_quant_storage"] = stage.weights_dtype
            if is_trained and stage.divides_base:
                from trainers.start.divided_base import DividedConfig

                return DividedConfig(stored=stored, **options)
        elif is_mixture(config) and stored in (None, "mxfp4"):
            from trainers.start.packed_experts import Nf4Config

            return Nf4Config(stored=stored, **options)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    return BitsAndBytesConfig(load_in_8bit=True) if stage.quantization == "int8" else None


def stored_format(config: Any) -> str | None:
    """How a checkpoint says that it holds its weights: "mxfp4"; None if in floats."""
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return method and str(getattr(method, "value", method))


def written_out(config: Any) -> dict[str, Any]:
    """What `from_pretrained` needs to write out a checkpoint of MXFP4 or FP8 in the dtype it is
    asked for; empty for any other.

    Left to itself transformers keeps MXFP4 packed if the package `kernels` is installed, and then
    refuses to train it.
    """
    from transformers import FineGrainedFP8Config, Mxfp4Config

    classes = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    wanted = classes.get(stored_format(config) or "")
    return {} if wanted is None else {"quantization_config": wanted(dequantize=True)}


def spread(job: Job, device: Device) -> dict[str, Any]:
    """The arguments of `from_pretrained` that fill the first GPU and go on to the next ones; {} for
    training, and where there is one GPU or none.

    A model that fits on the first GPU is there alone, as without them.
    """
    import torch

    if job.part != JUDGE or device.type != "cuda" or (count := torch.cuda.device_count()) < 2:
        return {}
    free = (torch.cuda.mem_get_info(number)[0] for number in range(count))
    room = {number: int(WEIGHTS_SHARE * found) for number, found in enumerate(free)}
    return {"device_map": "sequential", "max_memory": room}


def is_spread(model: Model) -> bool:
    """Whether the model's modules are on more than one device."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return len(set((getattr(base, "hf_device_map", None) or {}).values())) > 1


def load_base(
    job: Job,
    device: Device,
    source: str | None = None,
    *,
    head: str = "CausalLM",
    new_head: bool | None = None,
    **extra: Any,
) -> Any:
    """The model that a stage or a check starts from, in the stage's dtype, on the device.

    Raises InputError if its files cannot be read or are not those of the model that its config.json
    describes, or if it needs a package that is not installed.

    Args:
        source: A folder or hub id; default: the plan's model.
        head: CausalLM, Seq2SeqLM or SequenceClassification, as in transformers' AutoModelFor...
        new_head: Of a model that is only read, beside the one that is trained: whether a head that
            scores or classifies may be new. None: this one is trained.
        extra: Further arguments of `from_pretrained`.
    """
    import torch
    import transformers

    source, is_trained = source or job.base_model, new_head is None
    is_shared = is_trained and reads_once(job)
    options: dict[str, Any] = {
        "dtype": getattr(torch, job.stage.weights_dtype),
        "attn_implementation": job.stage.attention,
        # A head that scores or classifies may be new; everything else has to be in the files.
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "trust_remote_code": job.plan.trust_remote_code,
        **extra,
    }
    if is_shared:
        options |= unread()
    elif device.type == "cuda":
        # Straight into the device: else each process of a run would hold a whole copy in the host's
        # memory first, eight copies for eight GPUs. The CPU and an Apple GPU share that memory.
        options["device_map"] = {"": device}
    if source == job.base_model and job.plan.revision:
        options["revision"] = job.plan.revision
    check_files(source, base_faults)
    config = model_config(job, source)
    quantized = quantization_config(job, config, is_trained=is_trained)
    if quantized is not None:
        options |= {"quantization_config": quantized, "device_map": {"": device}}
        # Else transformers would heed the files' own format.
        if getattr(quantized, "stored", None) == "mxfp4":
            del config.quantization_config
            options["config"] = config
            for name in extra.keys() & set(dir(config)):
                setattr(config, name, options.pop(name))
    else:
        options |= written_out(config)
    options |= spread(job, device)
    said = repr(sorted((name, str(value)) for name, value in options.items() if name != "config"))
    key = (source, head, job.stage.kernels, str(device), said)
    bases = job.process.bases if is_trained else None
    if bases is not None and key in bases:
        return bases[key]
    try:
        with reading(source), one_reads_for_all() if is_shared else nullcontext():
            loader = getattr(transformers, f"AutoModelFor{head}")
            model, info = loader.from_pretrained(source, **options)
    except ImportError as error:
        raise InputError(f"the model cannot be loaded: {str(error).splitlines()[0]}") from None
    check_loaded(model, info, source, new_head=new_head is not False)
    model.left_out = sorted(info["unexpected_keys"])  # who writes the model anew has to say them
    if "device_map" not in options and not is_shared:
        model = model.to(device)
    is_module = methods().update(job.stage.update).is_module
    is_plans = is_trained and job.start is None and source == job.base_model
    # What an earlier stage has trained, or adds to the weights, is on no few numbers any more.
    if is_plans and not is_module and autocast_dtype(job, device) == "bfloat16":
        dither(model, job.stage.seed)
    model = silence_routers(keep_weights_unpacked(model))
    fuse_layers(model, job, device)
    if bases is not None:
        bases[key] = model
    return model


def keep_weights_unpacked(model: Model) -> Any:
    """The model, with bitsandbytes prevented from repacking its 4-bit weights on the CPU.

    The first forward pass without gradients would repack them in place for a bfloat16 kernel, so
    that an evaluation before training changes the base (log-probabilities of SmolLM2-135M moved by
    0.6 with bitsandbytes 0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def unquantised_parameters(model: Model) -> tuple[int, int] | None:
    """(parameters of a quantised base that are not quantised, those of them in routed experts);
    None if the base is not quantised.

    bitsandbytes quantises linear layers; experts are packed where transformers lets them be run by
    others.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(base, "is_quantized", False):
        return None
    packed = packed_size(base)
    plain = sum(
        parameter.numel()
        for parameter in base.parameters()
        if parameter.dtype.is_floating_point and not parameter.requires_grad
    )
    experts = find_experts(base)
    return plain - packed, experts.size - packed if experts is not None else 0


def load_model(job: Job, device: Device, update: Update) -> Any:
    """The model to train: a plain model that is trained whole or gets its module later, or a
    PeftModel with the module of an earlier stage.

    Raises InputError if the earlier result does not fit this stage.
    """
    start = job.start
    if start is None or not (start / "adapter_config.json").is_file():
        return load_base(job, device, str(start) if start is not None else None)
    config = read_adapter_config(start)
    if config.get("task_type") == "SEQ_CLS":
        raise InputError(
            f"stage {job.stage.name} continues from {start}, which scores or classifies texts and"
            " does not generate",
            where=f"stage {job.stage.name}",
            hint="name another stage or folder in start_from",
        )
    trains_all = not methods().update(job.stage.update).is_module
    module = update_of(config)
    if module is not None and not module.merges and trains_all:
        raise InputError(
            f"stage {job.stage.name} is update full and continues from {module.result},"
            " which cannot be merged into the weights it would train",
            where=f"stage {job.stage.name}",
            hint=(
                f"train stage {job.entry.starts_from or 'before'} with update: lora or full, or let"
                " this stage start from the model"
            ),
        )
    register_method(config)
    base = load_base(job, device, job.whole_model(start))
    if trains_all:
        return _with_module(job, base, start).merge_and_unload().requires_grad_(True)
    prefix = config.get("peft_type") == PREFIX
    model = _with_module(job, base, start, is_trainable=not prefix)
    if prefix:  # PEFT 0.21 loads a prefix for inference only, although it can be trained further
        model.peft_config["default"].inference_mode = False
        model.prompt_encoder["default"].requires_grad_(True)
    check_same_module(job, model.peft_config["default"], update)
    if prefix:
        # Compared with the file: PEFT adjusts what it loads to the model.
        fitting = update.peft_config(job.stage, job.options, base)
        wrong = [
            f"{key} {config.get(key)}, the model has {getattr(fitting, key)}"
            for key in ("num_layers", "num_attention_heads", "token_dim")
            if config.get(key) != getattr(fitting, key)
        ]
        if wrong:
            raise InputError(
                f"stage {job.stage.name} continues from {start}, which does not fit"
                f" {base.config.name_or_path}: a prefix of {'; '.join(wrong)}",
                where=f"stage {job.stage.name}",
                hint="a prefix belongs to the base it was trained on",
            )
    return model


def load_frozen(job: Job, device: Device, source: str, *, base: str, **options: Any) -> Any:
    """A model that is only read: a reward model, a teacher, what a stage has saved. The source is a
    hub id, or a folder with a whole model or with a module, which belongs to the base.

    Raises InputError if its files cannot be read, or are not those of one model.
    """
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        register_method(read_adapter_config(folder))
        whole = load_base(job, device, base, new_head=True, **options)
        model = _with_module(job, whole, folder)
    else:
        model = load_base(job, device, source, new_head=False, **options)
    return model.requires_grad_(False).eval()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of the module in the folder.

    Raises InputError if its files cannot be read.
    """
    check_files(str(folder), adapter_faults)
    return json.loads(text_of(folder / "adapter_config.json"))


def register_method(config: Mapping[str, Any]) -> None:
    """Let PEFT load and use a module of this config: the import adds what PEFT lacks."""
    module = update_of(config)
    if module is not None and module.imports:
        import_module(module.imports)


def update_of(config: Mapping[str, Any]) -> UpdateValue | None:
    """The update that PEFT saved under this config; None if no method here makes such modules."""
    return next(
        (one for one in methods().updates.values() if one.peft_type == config.get("peft_type")),
        None,
    )


def _with_module(job: Job, base: Any, start: Path, **options: Any) -> Any:
    """The base with the module of that folder.

    Raises InputError if it was made for another base.
    """
    from peft import PeftModel

    try:
        with reading(start, "the adapter"):
            model = PeftModel.from_pretrained(base, str(start), **options)
            check_adapter(model, start)
        # What was saved names the place where the project was then.
        model.peft_config["default"].base_model_name_or_path = base.name_or_path
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError | ValueError):
            raise
        lines = [line.strip() for line in str(error.__cause__).splitlines() if line.strip()]
        raise InputError(
            f"{start} does not fit {base.config.name_or_path}: {lines[-1] if lines else ''}",
            where=f"stage {job.stage.name}",
            hint="an adapter belongs to the base it was trained on",
        ) from None
    return model


def check_same_module(job: Job, there: Any, update: Update) -> None:
    """Raise InputError if the stage says anything else of its module than the one it continues
    from, whose config is `there`: another rank, for example, would have no effect.
    """
    if update.config_class() is not type(there):
        raise InputError(
            f"stage {job.stage.name} is update {job.stage.update}, but it continues from a"
            f" {there.peft_type.value} adapter",
            where=f"stage {job.stage.name}",
            hint="use the same update in both stages",
        )
    for key, plan_key in update.PLAN_KEYS.items():
        mine, other = job.stage.options.get(plan_key), getattr(there, key, None)
        # A config names its layers in other words, and has no text that a prefix started from.
        if mine not in (None, other) and plan_key not in ("target_modules", "prefix_text"):
            raise InputError(
                f"{plan_key} is {mine}, the adapter it continues from has {other}",
                where=f"stage {job.stage.name}",
                hint="give both stages the same value",
            )


def enable_stop_tokens(model: Model, tokenizer: Tokenizer, turn_ends: set[int]) -> list[str]:
    """Let generation stop at the tokens that end a turn in training; the tokens that had to be
    added, as text.
    """
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [token for token in known if token is not None]
    added = [token for token in sorted({tokenizer.eos_token_id, *turn_ends}) if token not in stops]
    if added:
        config.eos_token_id = [*stops, *added] if len(stops) + len(added) > 1 else added[0]
    config.pad_token_id = tokenizer.pad_token_id
    return [tokenizer.convert_ids_to_tokens(token) for token in added]


def check_vocabulary(model: Model, tokenizer: Tokenizer, rows: Iterable[Any] = ()) -> None:
    """Raise InputError if the tokenizer has tokens for which the model has no embedding. Special
    tokens that no row uses are let pass: Gemma 3 1B has one for pictures, which it cannot read.
    """
    size = model.get_input_embeddings().weight.shape[0]
    beyond = {token for token in tokenizer.get_vocab().values() if token >= size}
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder.items()
    used = beyond - {token for token, entry in added if entry.special}
    used |= beyond & {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
    used |= {token for row in rows for token in row.input_ids if token in beyond}
    if used:
        shown = tokenizer.convert_ids_to_tokens(max(used))
        raise InputError(
            f"the tokenizer has token ids up to {max(used)} ({shown}), the model only {size}"
            " embeddings",
            hint=(
                "tokenizer and model do not belong together, or tokens were added without resizing"
                " the model"
            ),
        )
