"""What must be true before a run writes anything: one file for each check, found by listing.

A file has

| name | holds |
| --- | --- |
| `PHASE` | what it looks at: the `plan`, the `machine`, or the `model` on this machine |
| `check(call) -> Checked` | faults of the plan and of the machine, needs, and warnings |

A phase begins once the one before has found nothing wrong. All faults of a phase come together.
Folders named in ADVISE_METHODS add theirs from `launch/checks/`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from advisor.ground.errors import MachineNotReady, refuse
from advisor.ground.extras import Checked, extras
from advisor.ground.resources import method_roots
from advisor.launch.call import Call

__path__ += [str(root / "launch" / "checks") for root in method_roots()[1:]]
PHASES = ("plan", "machine", "model")


def run_checks(call: Call) -> Checked:
    """The needs and warnings of all checks.

    Raises InputError with everything that the plan names and that is not there, else
    MachineNotReady with everything that the machine lacks.
    """
    files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    needs, warnings = list[str](), list[str]()
    for phase in PHASES:
        here: list[Checked] = [file.check(call) for file in files if phase == file.PHASE]
        if phase == "machine" and call.starts_servers:  # they may need the network
            here += [extra.check(call) for extra in extras().values()]
        refuse(fault for one in here for fault in one.bad)
        if lacking := [fault for one in here for fault in one.lacking]:
            raise MachineNotReady(faults=lacking)
        needs = [line for one in here for line in one.needs] + needs  # downloads come first
        warnings += [line for one in here for line in one.warnings]
    return Checked(needs=needs, warnings=warnings)
