"""Supervised fine-tuning under any update scheme, on chat, prompt and completion, or raw text.

Run: python -P -m trainers.sft PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run] [--max-steps N] [--no-judge]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from trainers.machine import MemoryMeter, check_versions, is_main_process, quiet_libraries, torch_device, use_cores  # first: it silences the libraries

from advisor.errors import InputError
from advisor.plan.model import PlanData
from advisor.units import format_count, format_duration, format_gib
from trainers import checkpoints, judge, settings
from trainers.files import make_folder, write_json
from trainers.job import Job, run_trainer
from trainers.prepare import Prepared, Templater, columns, packed, prepared
from trainers.updates import Update, update_named

OBJECTIVES = ("sft", "cpt")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    return run_trainer(train, argv, objectives=OBJECTIVES, prog="trainers.sft")
