"""Ask Axolotl's own schemas what they make of a file."""

from __future__ import annotations

from typing import Any

import axolotl.utils.config as config
import yaml
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import ValidationError

from tools.other_tools.probe.read_axolotl import plugin_models

TOGETHER = "together: "  # begins a refusal that blames no single key


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
