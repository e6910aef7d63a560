"""Kernels that a run needs besides torch's own: whether they work here, found out before the model
loads; those that go into a model's layers, fused (plan key `kernels`) or compiled (`compile`); and
which code computes attention (`attention`).

Dimensions: S tokens of all rows laid end to end, H heads, D width of a head.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any, NamedTuple

from msgspec import structs

from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.methods import kernels as installed
from advisor.methods.kernels import AUTO, HUB_PACKAGE, Kernel, is_flash, kernel
from advisor.plan.keys import key_specs
from advisor.plan.model import Stage
from trainers.job import Device, Model
from trainers.job.evaluating import half_dtype
from trainers.job.job import Job
from trainers.job.libraries import first_line
from trainers.rows import Prepared, pack
from trainers.rows.packing import check_packing
from trainers.rows.sequences import lengths
from trainers.say.progress import tell
from trainers.start.model_files import model_config
from trainers.step.sharding import is_sharded, reads_once


def why_no_triton() -> str:
    """Why Triton cannot run its kernels here; empty if nothing speaks against it."""
    missing = installed.why_no_triton()
    try:
        missing or importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported ({first_line(error)})"
    return missing


def use_triton_if_it_works(device_type: str) -> str:
    """Let TRL compute its losses in plain torch if Triton does not work; what a person should know
    of it, or an empty text.

    TRL has the same computation, in tiles, for devices without Triton, and takes Triton wherever it
    can be imported: the first step would fail. Call it before a trainer is made.
    """
    reason = why_no_triton() if device_type == "cuda" else ""
    if not reason:
        return ""
    # All of TRL's kernels ask one of these two names.
    logprob: Any = importlib.import_module("trl.kernels.chunked_logprob")
    logprob._TRITON_AVAILABLE = False
    utils: Any = importlib.import_module("trl.trainer.utils")
    utils.is_triton_available = lambda: False
    return (
        f"the loss is computed without Triton's kernels, because {reason}: the same numbers, slower"
        f" steps; {installed.TRITON_NEEDS}"
    )


# --------------------------------------------------------------------------- what is missing


def kernel_faults(stage: Stage, device: Device) -> list[Fault]:
    """The kernels that the stage names and this machine cannot load: a GPU too old, a package that
    is not installed or was built for another torch, no compiler. `auto` is never at fault.
    """
    at, faults = f"stage {stage.name}", []
    for key, instead in (("attention", "sdpa"), ("kernels", "none")):
        one = kernel(getattr(stage, key))
        if one is not None and (reason := why_not(one, device)):
            what = f"{key} is {one.name}, which {reason.what}"
            allowed = f"{key}: {instead}, or auto, which takes what works"
            hint = f"{reason.hint}{', or ' if reason.hint else ''}set {key}: {instead}"
            faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    if stage.compile and (why := installed.why_no_torch_compile(device.type)):
        needs = installed.CPP_NEEDS if device.type == "cpu" else installed.TRITON_NEEDS
        allowed, hint = "compile: false trains the same without", f"{needs}; or set compile: false"
        what = f"compile is true, and {why}"
        faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    return faults


def why_not(one: Kernel, device: Device) -> Fault | None:
    """Why this machine cannot load the kernel, whose name goes before the words; None if nothing
    speaks against it. Imports its module, whose libraries may be built for another torch.
    """
    if device.type != "cuda":
        if one.name == "liger" and installed.triton_is_interpreted():
            return None
        return Fault(what=f"needs a CUDA or ROCm GPU, and this stage runs on {device.type}")
    build, capability = gpu_of(device)
    if build not in one.devices:
        return Fault(what=f"has no kernels for {build}")
    if not one.runs_on(capability):
        has = ".".join(map(str, capability or ()))
        return Fault(what=f"needs {one.needs}, and this GPU has {has}")
    if reason := one.why_not_installed:
        wanted = installed.hub_install() if one.hub else one.package
        what = f"needs the package {' or '.join(one.packages)}: {reason}"
        return Fault(what=what, hint=f"pip install {wanted}")
    if one.triton and (reason := why_no_triton()):
        return Fault(what=f"is compiled here, and {reason}", hint=installed.TRITON_NEEDS)
    if one.module and installed.is_installed(one.module):
        try:
            importlib.import_module(one.module)
        except Exception as error:
            again = "pip install --force-reinstall --no-build-isolation --no-deps"
            return Fault(
                what=f"needs {one.package}, which cannot be loaded: {first_line(error)}",
                hint=f"it was probably built for another torch: {again} {one.package}",
            )
    return None


def gpu_of(device: Device) -> tuple[str, tuple[int, ...] | None]:
    """('cuda' or 'rocm', the GPU's compute capability; None where AMD counts otherwise)."""
    import torch

    if torch.version.hip:
        return "rocm", None
    return "cuda", tuple(torch.cuda.get_device_capability(device))


def bitsandbytes_faults(*, stage: str) -> list[Fault]:
    """What keeps bitsandbytes from using the GPU: it has no library for this torch's CUDA."""
    import torch

    try:
        library: Any = importlib.import_module("bitsandbytes.cextension").lib
        if getattr(type(library), "compiled_with_cuda", False):
            return []
        reason = vars(library).get("error_msg") or "it found no library for this GPU"
    except Exception as error:
        reason = first_line(error)
    build = torch.version.cuda or torch.version.hip
    what = f"bitsandbytes cannot use this GPU: {str(reason).splitlines()[0]}"
    allowed = f"a bitsandbytes with a library for the CUDA of torch ({build})"
    hint = (
        "`python -m bitsandbytes` says what it looks for; or train without it (quantization: null,"
    )
    hint += " optimizer: adamw_fused)"
    return [Fault(where=f"stage {stage}", what=what, allowed=allowed, hint=hint)]


# --------------------------------------------------------------------------- fused layers

FUSED = "_fused_layers"  # set on a model that has them: the word of the plan
# What of Liger is put in: not its losses, which would replace the model's whole forward (ours never
# hold full logits), and not its LayerNorm, parts of which are what PEFT wraps.
LIGER = {
    "rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": False,
    "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip


def fuse_layers(model: Model, job: Job, device: Device) -> None:
    """Put the stage's fused kernels into a freshly loaded model, or say why not.

    Raises MachineNotReady if they fail half-way.
    """
    word = job.stage.kernels
    off = word == AUTO and device.type != "cuda" and not installed.triton_is_interpreted()
    if word == "none" or off:
        return
    name = "liger" if word == AUTO else word
    if reason := _why_unfit(name, model, device):
        tell(job, f"{'' if word == AUTO else 'WARNING: '}kernels: none instead of {name}: {reason}")
        return
    try:
        put_in(model, name)
    except Exception as error:
        raise MachineNotReady(
            f"the kernels of {name} do not fit the model: {first_line(error)}",
            where=f"stage {job.stage.name}",
            hint="set kernels: none",
        ) from error
    tell(job, f"kernels: {name}, in the layers of {model.config.model_type}")


def put_in(model: Any, name: str) -> None:
    """Put fused kernels into the model's layers: Liger's, or those that transformers finds on the
    hub. Liger also replaces the functions of the architecture, for models that load later, too.
    """
    if name == "hub":
        model.set_use_kernels(True)
    elif name == "liger":
        from transformers.integrations import apply_liger_kernel

        apply_liger_kernel(model, LIGER)
    setattr(model, FUSED, name)


def fused_in(model: Model) -> str:
    """The word of the fused kernels in a model, whatever module is on it; 'none' without any."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(base, FUSED, "none"))


def _why_unfit(name: str, model: Model, device: Device) -> str:
    """Why the kernels are not for this machine or model; empty if nothing speaks against it."""
    one = kernel(name)
    reason = why_not(one, device) if one is not None else None
    if reason is not None:
        return f"it {reason.what}{f' ({reason.hint})' if reason.hint else ''}"
    if name == "liger":
        patches: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
        if model.config.model_type not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
            return f"it has no kernels for {model.config.model_type} models"
    return ""


# --------------------------------------------------------------------------- compiled layers

# Widths change from batch to batch, and a layer is compiled anew for a kind of input it has not
# seen: more than these and torch falls back to plain code without a word (its own default is 8).
MOST_VERSIONS = 64


def compile_layers(model: Model, *, backend: str = "inductor") -> str:
    """Compile the forward of the model's repeated layers, in training alone; a line that says how
    many.

    Each kind of layer is compiled once and used for all of its layers (regional compilation).
    Adapters, gradient checkpointing, checkpoints and copies of the model see nothing of it.
    Evaluation and generated answers, whose shapes change with every token, run as they are, and so
    does a layer whose forward a library has replaced.
    """
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, MOST_VERSIONS)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    layers = [
        module
        for module in base.modules()
        if type(module).__name__ in names and "forward" not in module.__dict__
    ]
    for layer in layers:
        kind: Any = type(layer)
        layer.forward = MethodType(_in_training(kind, backend), layer)
    if not layers:
        return "compile: nothing, since transformers names no repeated layers of this model"
    return f"compile: {len(layers)} layers, of which each kind is compiled in the first steps"


@functools.cache
def _in_training(kind: Any, backend: str) -> Callable[..., Any]:
    """The forward of a kind of layer: compiled in training, else as it was. A plain function of the
    layer, so that a copy of a layer uses its own weights.
    """
    import torch

    plain: Any = kind.forward
    compiled: Any = torch.compile(plain, backend=backend)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    return forward


# --------------------------------------------------------------------------- attention
# Only packed rows gain much from a flash attention: it takes rows of any lengths laid end to end,
# and spends nothing on pairs of tokens of different rows, where sdpa computes the whole rectangle
# and masks it. So `attention: auto` looks for one there before the model loads, tries it on a few
# numbers, and takes sdpa if anything speaks against it. What is chosen is recorded; checkpoints
# depend on the word in the plan alone. Once the model is loaded, packing is tried on two rows.

# The fastest first. Hopper's own kernels come before those for every GPU since Ampere
# (arXiv:2407.08608: 1.5 to 2 times as fast); a package that was built here comes before the hub.
FLASH = (
    "flash_attention_3",
    "kernels-community/flash-attn3",
    "flash_attention_2",
    "kernels-community/flash-attn2",
    "kernels-community/aiter-flash-attn",
)
ROWS = (5, 9, 3)  # tokens of the rows that a kernel is tried on
# Of the largest number: what 16 bits explain in sums of a few products. A kernel that lets rows see
# each other, or whose backward pass is missing, is off by more than a tenth.
TOLERANCE = 0.03


def with_attention(job: Job, device: Device) -> Job:
    """The job with `attention: auto` resolved for this machine, which is told.

    Raises InputError if the model's config cannot be read, and MachineNotReady if a flash attention
    that the plan names does not load, or gives wrong numbers: a wrong one would train in silence.
    """
    named = job.stage.attention
    if named == AUTO:
        attention, said = choose(job, device)
        tell(job, said)
        return replace(job, attention=attention)
    if is_flash(named) and device.type == "cuda":
        reason = why_wrong(named, model_support(job), device)
        if reason:
            raise MachineNotReady(
                f"attention is {named}, which {reason}",
                where=f"stage {job.stage.name}",
                allowed="attention: sdpa, or auto, which takes what works",
                hint=f"set attention: sdpa; {HUB_PACKAGE} loads kernels from the hub or its cache",
            )
    return job


def choose(job: Job, device: Device) -> tuple[str, str]:
    """(what `auto` takes for the stage on the device, one line that says why; empty if there was
    nothing to choose).
    """
    support = model_support(job)
    plain = "sdpa" if support.sdpa else "eager"
    if device.type != "cuda" or not job.stage.packing:
        return plain, ""
    build, capability = gpu_of(device)
    against: list[str] = []
    for name in FLASH:
        one = kernel(name)
        if one is None or build not in one.devices or not one.runs_on(capability):
            continue
        reason = _why_unfit_flash(one, support, job, device) or why_wrong(name, support, device)
        if not reason:
            return name, f"attention: {name}, for rows of any lengths end to end"
        against.append(f"{name}: {reason}")
    can_install = support.flash and against and build == "cuda" and installed.why_no_hub()
    hint = f"; pip install {installed.hub_install()} brings one" if can_install else ""
    why = "; ".join(against) or "none has kernels for this GPU"
    return plain, f"attention: {plain}: no flash attention ({why}){hint}"


# --------------------------------------------------------------------------- what the model takes


class Support(NamedTuple):
    """Which attentions transformers has for a model."""

    sdpa: bool
    flash: bool
    widest_head: int | None
    heads: int
    kv_heads: int


def model_support(job: Job) -> Support:
    """What transformers says of the model's class: sdpa alone for code of the model's own."""
    import transformers

    config = model_config(job, job.base_model)
    text = config.get_text_config()
    classes = transformers.MODEL_MAPPING.get(type(config), ())
    kinds = classes if isinstance(classes, tuple) else (classes,)
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    heads = getattr(text, "num_attention_heads", None) or 1
    names = ("head_dim", "global_head_dim", "qk_head_dim", "v_head_dim")
    known = [
        one
        for layer in layers
        for name in names
        if isinstance(one := getattr(layer, name, None), int)
    ]
    hidden = getattr(text, "hidden_size", None)
    # Models with numbers beside the scores (sinks) list the kernels that know them.
    particular = any(getattr(kind, "_compatible_flash_implementations", None) for kind in kinds)
    return Support(
        sdpa=not kinds or all(kind._supports_sdpa for kind in kinds),
        flash=bool(kinds)
        and all(kind._supports_flash_attn for kind in kinds)
        and not particular
        and len(set(known)) <= 1,  # heads of several widths: each kernel has its own opinion
        widest_head=max(known, default=hidden // heads if hidden else None),
        heads=heads,
        kv_heads=max(getattr(layer, "num_key_value_heads", None) or heads for layer in layers),
    )


def _why_unfit_flash(one: Kernel, support: Support, job: Job, device: Device) -> str:
    """Why the kernel is not for this stage or machine; empty if nothing speaks against it."""
    stage, widest = job.stage, support.widest_head or 0
    if not support.flash:
        return "transformers has none for this model"
    if (stage.weights_dtype, stage.precision) == ("float32", "pure"):
        return "computes in 16 bits"
    if one.widest_head and widest > one.widest_head:
        return f"its heads are at most {one.widest_head} wide, the model's {widest}"
    axes = {"objective": stage.objective, "update": stage.update, "attention": one.name}
    refused = [f"{owner}: {why.because}" for owner, why in key_specs().refused(axes)]
    reason = None if refused else why_not(one, device)
    return reason.what if reason else "; ".join(refused)


# --------------------------------------------------------------------------- a few numbers


def why_wrong(name: str, support: Support, device: Device) -> str:
    """Why a flash attention cannot be trusted here; empty if it loads, and three packed rows get
    the outputs and gradients of the same rows alone.
    """
    try:
        flash = load_flash(name)
        gap = largest_gap(flash, support, device)
    except Exception as error:
        return f"cannot be used ({first_line(error)})"
    if gap <= TOLERANCE:
        return ""
    return f"gives other numbers: {gap:.2g} of the largest, at most {TOLERANCE:g} is rounding"


def load_flash(name: str) -> Callable[..., Any]:
    """The function of a flash attention for rows laid end to end, as transformers loads it.

    Raises whatever the library raises: it may not be installed, not reach the hub, or be built for
    another torch.
    """
    from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

    functions, _ = lazy_import_flash_attention(name)
    return functions[1]


def largest_gap(flash: Callable[..., Any], support: Support, device: Device) -> float:
    """The largest difference of an output or gradient from that of each row alone in float32, as a
    share of the largest.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    dtype = half_dtype(device)
    generator = torch.Generator().manual_seed(0)

    def numbers(heads: int) -> Any:
        shape = (sum(ROWS), heads, support.widest_head or 64)
        return torch.randn(shape, generator=generator).to(device, dtype)

    q_SHD, k_SHD, v_SHD = (numbers(n) for n in (support.heads, support.kv_heads, support.kv_heads))
    away_SHD = numbers(support.heads)
    inputs = [tensor.detach().requires_grad_(True) for tensor in (q_SHD, k_SHD, v_SHD)]
    ends = torch.tensor([0, *ROWS], device=device).cumsum(0).to(torch.int32)
    found = flash(
        *inputs, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=max(ROWS),
        max_seqlen_k=max(ROWS), causal=True,
    )  # fmt: skip
    out_SHD = found[0] if isinstance(found, tuple) else found
    mine = [out_SHD, *torch.autograd.grad(out_SHD, inputs, away_SHD)]
    exact = [tensor.detach().float().requires_grad_(True) for tensor in inputs]
    rows_S = torch.arange(len(ROWS), device=device).repeat_interleave(ends.diff())
    mask_SS = (rows_S[:, None] == rows_S).tril()
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in exact)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask_SS, enable_gqa=True)
    true_SHD = out[0].transpose(0, 1)
    theirs = [true_SHD, *torch.autograd.grad(true_SHD, exact, away_SHD.float())]
    gaps = [
        (one - other).detach().float().abs().max() / other.detach().float().abs().max()
        for one, other in zip(mine, theirs, strict=True)
    ]
    return float(torch.stack(gaps).max())  # Python's own passes over what is no number


def usable_here(attention: str, device_type: str) -> str:
    """What a result that was trained with this attention is loaded with here: the same, or sdpa if
    this machine lacks it.
    """
    one = kernel(attention)
    can = attention != AUTO if one is None else device_type == "cuda" and not one.why_not_installed
    return attention if can else "sdpa"


# --------------------------------------------------------------------------- packed rows


def unpacked_if_seen(
    job: Job, data: Prepared[Any], model: Model, device: Device
) -> tuple[Job, Prepared[Any]]:
    """The job and its data; without packing if it would let rows of this model see each other, and
    the plan has `group_by_length: true` beside it, which is then done instead. Says so.

    An optimizer step keeps its number of rows, and a micro-batch has no more tokens than before.

    Raises InputError if packing alone is asked for.
    """
    if not job.stage.packing:
        return job, data
    stage = job.entry.stage  # as planned: checkpoints depend on it
    try:
        tried = tried_on(model, job, device)
        check_packing(tried, data.train, stage=stage.name, attention=job.stage.attention)
    except InputError as error:
        if not stage.group_by_length:
            raise
        why = error.faults[0].headline.removeprefix(f"stage {stage.name}: ")
    else:
        return job, data
    packed = pack(data.train, stage.seq_len)
    rows = len(data.train) / len(packed) * stage.effective_batch_size
    fit = stage.micro_batch_size * max(1, stage.seq_len // int(lengths(data.train).max()))
    micro = max(1, min(fit, round(rows)))
    accum = max(1, round(rows / micro))
    note = (
        f"{why}: rows of similar length share a micro-batch instead, {micro} in each and"
        f" {micro * accum} in an optimizer step, about as many as packed"
    )
    tell(job, f"WARNING: {note}")
    # Rows for the sequences that memory had room for, if an earlier attempt ran out of it.
    room = job.most_rows and max(1, micro * job.most_rows // stage.micro_batch_size)
    changed = structs.replace(stage, packing=False, micro_batch_size=micro, grad_accum=accum)
    return (
        replace(job, entry=structs.replace(job.entry, stage=changed), most_rows=room),
        replace(data, notes=(*data.notes, note)),
    )


def tried_on(model: Model, job: Job, device: Device) -> Any:
    """The model; of one that is read once for all processes, and is on the host until it is
    divided, one with its first layers on the device. Their weights are random: whether rows see
    each other depends on the architecture.
    """
    if not reads_once(job) and not (is_sharded(job) and job.stage.divides_base):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    devices = [device] if device.type == "cuda" else []
    with torch.device(device), torch.random.fork_rng(devices):
        return AutoModelForCausalLM.from_config(
            first_layers(base.config),
            dtype=getattr(torch, job.stage.weights_dtype),
            attn_implementation=job.stage.attention,
            trust_remote_code=job.plan.trust_remote_code,
        ).eval()


def first_layers(config: Any) -> Any:
    """The config of the first layers: as many as hold one of each kind, two at least."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count, kinds = text.num_hidden_layers, getattr(text, "layer_types", None) or ()
    few = min(count, max([2, *(1 + kinds.index(kind) for kind in set(kinds))]))
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, value[:few])
    text.num_hidden_layers = few
    return config
