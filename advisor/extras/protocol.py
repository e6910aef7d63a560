"""What an optional feature may do, and where it is asked.

advisor/extras/NAME/extra.py holds `EXTRA`, an object of a class that derives from `Extra` and
overrides what it needs. It is loaded with every plan that is read, so what it imports at the top
is light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from advisor.export.exporter import Form as Form
from advisor.ground.errors import AdviseError
from advisor.ground.extras import Catalogue as Catalogue
from advisor.ground.extras import Checked as Checked
from advisor.plan.checks import Report
from advisor.record.run import RunRecord, StageRecord
from advisor.record.verdict import VerdictPart

if TYPE_CHECKING:
    from advisor.launch.call import Call
    from advisor.launch.prepare import PlanRun
    from advisor.launch.record_keeper import Ending
    from advisor.launch.stages import StageRunner
    from advisor.render.blocks import Section


class Extra(Protocol):
    """One optional feature. Every hook has a default that does nothing."""

    NAME: ClassVar[str]  # its folder, its key under `extras` in a plan and in run.json
    HELP: ClassVar[str]  # one line
    # A struct whose fields are its plan keys; None: it has none. Types, limits and texts of the
    # fields are checked and documented like those of the plan itself.
    KEYS: ClassVar[type | None] = None
    # Whether its keys stand beside `stages`, where they stood before there were extras; all others
    # stand under `extras: {NAME: {...}}`.
    BESIDE_STAGES: ClassVar[bool] = False
    INSTALLS: ClassVar[str | None] = None  # the extra of pyproject.toml that it needs
    UNTIMED: ClassVar[str | None] = None  # what of a run with its keys no estimate of time holds
    EXPORTERS: ClassVar[Sequence[Form]] = ()  # its forms of `advise export`

    # ------------------------------------------------------------------- plans

    def check_plan(self, data: Mapping[str, Any], report: Report) -> None:
        """Report faults that span several keys of a plan, which is given as plain data."""
        return None

    def with_paths(self, keys: Any, moved: Callable[[str], str]) -> Any:
        """Its keys of a plan with `moved` applied to every path in them."""
        return keys

    def files_with(self, path: Path) -> Sequence[Path]:
        """A file that its plan keys name, with the files that it needs; empty for any other."""
        return ()

    def network(self, keys: Any) -> str | None:
        """What a run with these keys needs the network for, as a clause; None: nothing."""
        return None

    def catalogues(self) -> Iterable[Catalogue]:
        """Its files below rules/."""
        return ()

    # ------------------------------------------------------------------- a run

    def check(self, call: Call) -> Checked:
        """What keeps the run from starting, and what it needs. Writes nothing."""
        return Checked()

    def before(self, run: StageRunner) -> None:
        """Act before the first stage. What it raises ends the run before anything is trained."""
        return None

    def after(self, run: StageRunner) -> Mapping[str, Any] | None:
        """Act once all stages are trained, before the run counts as done.

        Returns what run.json keeps under `extras.NAME`; None: nothing new. What it raises makes the
        run a failed one, and the next call only repeats this.
        """
        return None

    def misses(self, run: PlanRun, record: RunRecord) -> bool:
        """Whether `after` has work left on a run whose stages are trained."""
        return False

    def finished(self, ending: Ending) -> AdviseError | None:
        """Act on a run that is done, again in every later call.

        Returns what did not end as the plan wants, though all is trained and saved; it decides the
        exit code.
        """
        return None

    # ------------------------------------------------------------------- what a person sees

    def finding(self, record: RunRecord, stage: StageRecord) -> VerdictPart | None:
        """Whether a result lost anything, for the verdict; None: nothing was looked at."""
        return None

    def block(self, record: RunRecord) -> Sequence[Section]:
        """Its part of the report."""
        return ()

    def recognise(self, path: str) -> Callable[..., int] | None:
        """What `advise check` calls for this file; None: it is none of its kind.

        The function takes the path and the command's options (CheckOptions in
        advisor/commands/options.py); it prints the answer and returns the exit code.
        """
        return None

    def recognise_beside(self, path: str, other: str) -> Callable[..., int] | None:
        """The same for a file that another one says more about; it is called with the path."""
        return None
