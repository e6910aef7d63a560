"""Ask TRL's own command line what it makes of a file."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path

from accelerate.commands.launch import launch_command_parser
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from tools.other_tools.probe.trials import pretend_gpu

SCRIPT = "script.py"


def refusal(text: str, command: str) -> str:
    """Why `trl COMMAND --config` does not begin with this text; empty if it does."""
    pretend_gpu()
    parser = importlib.import_module(f"trl.scripts.{command}").make_parser(prog=f"trl {command}")
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            with contextlib.redirect_stderr(said):
                *_, left, others = parser.parse_args_and_config(
                    ["--config", str(path)],
                    return_remaining_strings=True,
                    separate_remaining_strings=True,
                )
                options = resolve_accelerate_config_argument(left + others)
                launched = launch_command_parser().parse_args([*options, SCRIPT])
        except SystemExit:
            return said.getvalue().strip().splitlines()[-1]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    # A switch that is given a value leaves that value as the script to start.
    return "" if launched.training_script == SCRIPT else f"starts {launched.training_script}"


def start(text: str, command: str) -> str:
    """The same: what only a trainer refuses is asked of no file, since it needs a model."""
    return refusal(text, command)
