"""The build hook: the JSON Schemas are made from the rules when the wheel is built.

They are not committed, so a changed rule changes its own files only. An editable installation gets
them too, beside its rules, where the first lines of the YAML files look for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SchemaHook(BuildHookInterface):
    """Writes rules/schema/, which the wheel takes in with the rules."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root) / "rules" / "schema"
        shutil.rmtree(folder, ignore_errors=True)  # a schema that nothing makes any more
        # A process of its own, which sees this source tree and no rules or methods of the user's.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ADVISE_") and name not in ("PYTHONSAFEPATH", "PYTHONPATH")
        }
        subprocess.run(
            [sys.executable, "-m", "advisor", "rules", "schema", "--out", str(folder)],
            cwd=self.root,
            env={**environment, "PYTHONPATH": os.pathsep.join([self.root, *sys.path])},
            check=True,
        )
