"""The weights of a stage in the layout that every library reads: written whole, on the disk before
anything says that they are, and put back into a model that is built already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from advisor.ground.files import DISK, Disk
from advisor.record.stage import SavedFile
from trainers.job.machine import is_main_process
from trainers.keep.checkpoint_store import disk_refused
from trainers.step.sharding import sharded_tensors, whole_prompt, whole_weights
from trainers.updates.experts import returning_routers


def save_weights(model: Any, folder: Path, *, state_dict: Any = None) -> None:
    """Write the adapter or model in the plain PEFT or Hugging Face layout."""
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    # "auto" would ask the hub for the base model's config at every save; no embedding is resized
    # here. The frozen copy of the adapter that serves as reference model is not part of the result.
    extra = (
        {"save_embedding_layers": False, "selected_adapters": ["default"]}
        if isinstance(model, PeftModel)
        else {}
    )
    with returning_routers(model), whole_prompt(model, state_dict or {}):
        model.save_pretrained(str(folder), state_dict=state_dict, **extra)
    (folder / "README.md").unlink(missing_ok=True)  # a template that PEFT leaves empty


def save_result(model: Any, tokenizer: Any, folder: Path) -> dict[str, SavedFile]:
    """Write the trained adapter or model with its tokenizer (chat template included) into the
    stage's folder, each file whole or not at all; the files, with their sizes and hashes. Call it
    in every process of the run: the main one writes, and the others know no files. The weights of a
    divided model are put together first, by all of them.

    Raises MachineNotReady if the disk does not take it.
    """
    is_divided = sharded_tensors(model) > 0
    is_module = hasattr(model, "peft_config")
    weights = whole_weights(model, trained_only=is_module) if is_divided else None
    if not is_main_process():
        return {}
    unfinished = folder / ".saving"
    try:
        DISK.remove(unfinished)
        save_weights(model, unfinished, state_dict=weights)
        tokenizer.save_pretrained(str(unfinished))
        # A model that scores has no generation settings.
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(str(unfinished))
        return put_result(unfinished, folder)
    except (OSError, SafetensorError) as error:
        DISK.discard(unfinished)
        raise disk_refused(folder, error) from error


def put_result(unfinished: Path, folder: Path, *, disk: Disk = DISK) -> dict[str, SavedFile]:
    """Move the files of a result into the stage's folder; each of them with its size and hash.

    Raises OSError as the system does.

    Args:
        unfinished: A folder inside the stage's, which holds the files and is removed.
        folder: The stage's folder.
    """
    disk.sync_tree(unfinished)
    files = {
        name: SavedFile(bytes=disk.size(unfinished / name), sha256=disk.digest(unfinished / name))
        for name in disk.files(unfinished)
    }
    for name in disk.names(unfinished):
        if (folder / name).is_dir():  # of an earlier attempt: a rename replaces files alone
            disk.remove(folder / name)
        disk.rename(unfinished / name, folder / name)
    for place in (folder, *folder.parents[:3]):  # the names of the folders may be new, too
        disk.sync(place)
    disk.remove(unfinished)
    return files


def load_saved(model: Any, folder: Path, *, adapter: str = "default") -> None:
    """Give the model the saved weights; of a PeftModel, the adapter of that name alone.

    Raises RuntimeError if they do not fit the model.
    """
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(folder), device="cpu")
        set_peft_model_state_dict(model, weights, adapter_name=adapter)
    else:
        _load_whole(model, folder)


def _load_whole(model: Any, folder: Path) -> None:
    """The files one after the other, so that no second copy of the model is in memory; but if they
    have other names than the model in memory (transformers keeps the experts of a mixture in one
    tensor, and saves each by itself), as transformers reads them.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    # Not the state of a run, which lies beside the weights of a checkpoint.
    files = sorted(folder.glob("model*.safetensors"))
    stored: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if set(model.state_dict()) - tied <= stored:
        for path in files:
            model.load_state_dict(load_file(path), strict=False)
        return
    # Of the class that is there already: no code is looked for.
    read = type(model).from_pretrained(
        str(folder), dtype=next(model.parameters()).dtype, trust_remote_code=False
    )
    model.load_state_dict(read.state_dict())
