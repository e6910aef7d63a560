"""Ask Axolotl's own schemas what they make of a file."""

from __future__ import annotations

from typing import Any

import axolotl.utils.config as config
import torch
import yaml
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlConfigWCapabilities, AxolotlInputConfig
from pydantic import ValidationError

from tools.other_tools.probe.read_axolotl import plugin_models

TOGETHER = "together: "  # begins a refusal that blames no single key
# What a machine with one H100 says of itself.
GPU = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def refusal(text: str, command: str) -> str:
    """Why `axolotl train` does not begin with this text; empty if it does.

    What it asks of the GPU is left out. Keys of plugins are merged in without loading the plugins.
    """
    try:
        values = DictDefault(yaml.safe_load(text))
        config.merge_input_args = lambda: (None, merged(values.get("plugins") or []))
        config.validate_config(values)
    except ValidationError as error:
        together = all(not item["loc"] for item in error.errors())
        return f"{TOGETHER if together else ''}{error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    except DeprecationWarning as error:
        return f"{type(error).__name__}: {error}"
    return ""


def merged(plugins: list[str]) -> Any:
    """The model of a whole file with what these plugins bring."""
    brought = []
    for plugin in plugins:
        package, _, name = plugin.rpartition(".")
        for known, model in plugin_models():
            home, _, own = known.rpartition(".")
            if own == name and model is not None and f"{package}.".startswith(f"{home}."):
                brought.append(model)
    return type("AxolotlInputConfig", (AxolotlInputConfig, *dict.fromkeys(brought)), {})


def start(text: str, command: str) -> str:
    """The same as on a GPU: the checks of keys that only then are made are made too."""
    values = DictDefault(yaml.safe_load(text))
    plugins = merged(values.get("plugins") or [])
    on_gpu = type("AxolotlConfigWCapabilities", (AxolotlConfigWCapabilities, plugins), {})
    config.merge_input_args = lambda: (on_gpu, plugins)
    try:
        config.validate_config(values, GPU, {"torch_version": torch.__version__.split("+")[0]})
    except (Exception, DeprecationWarning) as error:
        return f"{type(error).__name__}: {error}"
    return ""
