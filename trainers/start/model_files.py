"""Reading a model's folder with the libraries: what they raise means that the folder cannot be
used, and what they leave at random numbers means that the model is incomplete.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.model_files.config import wrong_values
from advisor.model_files.folder import (
    ADAPTER,
    INDEX,
    PICKLED,
    WEIGHTS,
    adapter_faults,
    base_faults,
    read_header,
    tokenizer_faults,
)
from trainers.job.job import Job
from trainers.job.libraries import first_line, lack_of_memory, refused_code

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d{1,9})\.")
SHOWN = 4
# Errors of the system that are about the folder; others are about the machine: a full disk.
OF_THE_FOLDER = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EACCES, errno.EPERM,
)  # fmt: skip
# Of the machine, whatever was being read, beside a lack of memory.
OF_THE_MACHINE = ("cuda error", "cuda driver", "hip error", "nccl")
MACHINE_TYPES = ("AcceleratorError", "DistBackendError", "DistNetworkError")
# What a library says, and what to do.
CHECK_NAME = (
    "check the model's name, `hf auth login` for gated models, and the connection (HF_HUB_OFFLINE)"
)
NEWER = "check model_type in its config.json; a newer transformers may know it"
HINTS = (
    (
        "Unrecognized configuration class",
        "transformers has no such model of this family (model_type in config.json)",
    ),
    ("does not recognize this architecture", NEWER),
    ("model type", NEWER),
    ("Model type", NEWER),
    ("attn_implementation", "set `attention: eager` in the stage"),
)
# What is left over if a quantised checkpoint is read as if it were plain.
SCALES = re.compile(
    r"\.(weight_scale(_inv)?|input_scale|qweight|qzeros|scales|g_idx|weight_packed|absmax|SCB|"
    r"[a-z_]*_(scales|blocks))$"
)


# --------------------------------------------------------------------------- what libraries raise


@contextmanager
def reading(source: str | Path, what: str = "the model") -> Iterator[None]:
    """Turn what a library raises while it reads the source, a folder or hub id, into an InputError
    that names it.

    Only library calls belong inside: a fault of this program must stay one. Lack of memory, of a
    device, of disk space and of a package are no faults of the source, and pass.
    """
    try:
        yield
    except BaseException as error:
        if not _is_of_the_source(error):
            raise
        if refused := refused_code(error, source):
            raise refused from None
        raise InputError(faults=_faults(str(source), what, error)) from error


def _is_of_the_source(error: BaseException) -> bool:
    """Whether the error says something of what was read, not of the machine or of the reader."""
    # tokenizers and safetensors panic on some damaged files, with an error that is no Exception.
    if not isinstance(error, Exception):
        return type(error).__name__ == "PanicException"
    if isinstance(error, AdviseError | ImportError) or lack_of_memory(error):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in OF_THE_FOLDER
    is_of_machine = any(words in str(error).lower() for words in OF_THE_MACHINE)
    return not is_of_machine and type(error).__name__ not in MACHINE_TYPES


def _faults(source: str, what: str, error: BaseException) -> list[Fault]:
    """What shows of the files without the library, else what the library says."""
    folder = Path(source)
    if folder.is_dir():
        found = [
            *tokenizer_faults(folder),
            *(adapter_faults(folder) if what == "the adapter" else base_faults(folder)),
        ]
        if found:
            return found
    if "weights_only" in str(error) or isinstance(error, UnpicklingError):
        what = "its weights are a pickle that holds more than tensors or is damaged; it was not run"
        hint = "look for a version of the model with *.safetensors files"
        return [Fault(where=source, what=what, allowed=f"weights as {WEIGHTS}", hint=hint)]
    what = f"{what} cannot be loaded: {first_line(error)}"
    known = (hint for words, hint in HINTS if words in str(error))
    other = "download or copy the folder again" if folder.is_dir() else CHECK_NAME
    return [Fault(where=source, what=what, hint=next(known, other))]


def model_config(job: Job, source: str) -> Any:
    """The config of a model, a folder or hub id. Raises InputError if it cannot be read."""
    from transformers import AutoConfig

    revision = job.plan.revision if source == job.base_model else None
    with reading(source):
        return AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=job.plan.trust_remote_code
        )


def check_files(source: str, check: Callable[[Path], Sequence[Fault]]) -> None:
    """Raise InputError with what the check finds in a folder; a hub id has no folder yet."""
    folder = Path(source)
    if folder.is_dir() and (found := check(folder)):
        raise InputError(faults=found)


# --------------------------------------------------------------------------- what was not loaded


def check_loaded(
    model: Any, info: Mapping[str, Any], source: str, *, new_head: bool = True
) -> None:
    """Raise InputError if the files of the source are not those of the model that was built from
    its config.json.

    A new head of a model that scores or classifies may be legitimate (`new_head`), and tied weights
    are, which transformers takes off its list.

    Args:
        info: The loading info of `from_pretrained`: missing_keys, unexpected_keys, mismatched_keys.
    """
    names = (name for name in (WEIGHTS, INDEX, PICKLED) if (Path(source) / name).is_file())
    where = next(names, "its files").replace(INDEX, f"the files of {INDEX}")
    at = f"model {source}"
    new = partial(_may_be_new, model, new_head=new_head)
    missing = sorted(key for key in info["missing_keys"] if not new(key))
    mismatched = sorted(entry for entry in info["mismatched_keys"] if not new(entry[0]))
    unexpected = sorted(key for key in info["unexpected_keys"] if _has_a_place(model, key))
    said = [
        f"{key} in {where} has shape {list(there)}, and config.json describes {list(wanted)}"
        for key, there, wanted in mismatched[:SHOWN]
    ]
    if unexpected:
        said.append(f"config.json describes no place for {_listed(unexpected)} in {where}")
    others = "weights and config.json are of different models: download both again"
    found = [Fault(where=at, what=what, hint=others) for what in said]
    if missing:
        what = f"the base model is incomplete: {where} lacks {_listed(missing)}"
        found.append(Fault(where=at, what=what, hint="download the whole model again"))
    # transformers reads the settings of generation without a look.
    settings = getattr(getattr(model, "generation_config", None), "__dict__", {})
    for key, allowed in wrong_values(settings).items():
        what = f"generation_config.json: {key} is {settings[key]!r}"
        found.append(Fault(where=source, what=what, allowed=allowed))
    if found:
        raise InputError(faults=found)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_adapter(model: Any, folder: Path, *, name: str = "default") -> None:
    """Raise ValueError if the module's file lacks tensors of the module, or has others beside.

    PEFT leaves the first at their start with a warning, and the second unused.
    """
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    config = model.peft_config[name]
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type)
    if not prefix or config.is_prompt_learning or not (folder / ADAPTER).is_file():
        return
    there = set(read_header(folder / ADAPTER))
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    missing = sorted(set(wanted) - there)
    strange = sorted(name for name in there - set(wanted) if prefix in name)
    if missing:
        raise ValueError(f"{missing[0]} is not in {ADAPTER}")
    if strange:
        raise ValueError(f"{strange[0]} has no place in the model")


def _may_be_new(model: Any, key: str, *, new_head: bool) -> bool:
    """Whether a tensor of the model may start from random numbers: those of the head of a model
    that scores or classifies, and, in a model's own code, buffers, which that code computes.
    """
    prefix = getattr(model, "base_model_prefix", "")
    is_of_head = not key.startswith(f"{prefix}.") or f"{prefix}.pooler." in key
    if new_head and is_of_head and type(model).__name__.endswith("ForSequenceClassification"):
        return True
    is_own_code = not type(model).__module__.startswith("transformers.")
    return is_own_code and key in dict(model.named_buffers())


def _has_a_place(model: Any, key: str) -> bool:
    """Whether a tensor that was not used says that the model is another one: a layer beyond the
    last, a bias of a layer that has none here, or the scale of quantised weights that were read as
    plain ones. A tower for pictures, another head and layers that predict further tokens are no
    such signs.
    """
    match = LAYER.search(key)
    layers = _submodule(model, key[: match.start(1) - 1]) if match is not None else None
    count = len(layers) if isinstance(layers, Sized) else None
    if match is not None and count is not None and int(match[1]) >= count:
        return not any("nextn" in name or "mtp" in name for name in model.config.to_dict())
    if SCALES.search(key):
        return _submodule(model, key.rpartition(".")[0]) is not None
    parent, _, last = key.rpartition(".")
    module = _submodule(model, parent)
    return last == "bias" and module is not None and hasattr(module, "weight")


def _submodule(model: Any, name: str) -> Any | None:
    for start in ("", f"{getattr(model, 'base_model_prefix', '')}."):
        try:
            return model.get_submodule(f"{start}{name}")
        except AttributeError:
            continue
    return None
