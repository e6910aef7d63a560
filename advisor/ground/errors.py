"""Everything that can go wrong for a user, and the exit code of each kind.

An error has four parts: what is wrong, where, what is allowed, the next step. The class owns
its exit code; cli.py is the only place that catches AdviseError. All faults of one input come
together, as one InputError.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from advisor.ground.terminal import mask_secrets, shown

FLAG = re.compile(r"--[a-z][a-z-]*(?=[\s:])")
SHOWN_FAULTS = 20
SHOWN_CHARS = 4000  # of a line: as long as a path may be, and no terminal full of a wrong value


class Fault(Struct, frozen=True, kw_only=True):
    """One thing wrong with an input."""

    what: str  # "unknown update 'lroa'"
    where: str = ""  # the place in a file, the flag, the stage: "plan.yaml:12:13", "--choose"
    allowed: str = ""  # "known updates: adapter, full, lora, prefix"
    hint: str = ""  # the next step: "did you mean 'lora'?"

    @property
    def place(self) -> str:
        """Where, or the flag that the sentence itself begins with."""
        named = FLAG.match(self.what)
        return self.where or (named[0] if named else "")

    @property
    def headline(self) -> str:
        """Where and what, in one line. A sentence that begins with its place names it once."""
        if not self.where or self.what.startswith(self.where.removesuffix("=")):
            return self.what
        return f"{self.where.removesuffix('=')}: {self.what}"

    def lines(self) -> list[str]:
        return [self.headline, *(f"  {part}" for part in (self.allowed, self.hint) if part)]


class AdviseError(Exception):
    """A failure that has been understood. Carries one fault or several."""

    exit_code = 70

    def __init__(
        self,
        what: str = "",
        allowed: str = "",
        hint: str = "",
        *,
        where: str = "",
        faults: Iterable[Fault] = (),
    ) -> None:
        one = Fault(what=what, where=where, allowed=allowed, hint=hint)
        self.faults = tuple(faults) or (one,)
        super().__init__(self.text())

    def text(self) -> str:
        """Every fault on its own lines, the first twenty and a count of the rest; what acts on a
        terminal is escaped, what looks like a secret is masked, what is very long is cut."""
        lines = [_cut(line) for fault in self.faults[:SHOWN_FAULTS] for line in fault.lines()]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"... and {len(self.faults) - SHOWN_FAULTS} more of the same input")
        return shown(mask_secrets("\n".join(lines)))


def _cut(line: str) -> str:
    """The line without its middle, if it is longer than anybody reads."""
    text = (
        mask_secrets(line) if len(line) > SHOWN_CHARS else line
    )  # no part of a secret is left then
    left_out = len(text) - SHOWN_CHARS
    if left_out <= 0:
        return text
    begin = 3 * SHOWN_CHARS // 4
    return f"{text[:begin]} [{left_out:,} characters left out] {text[begin + left_out :]}"


class InputError(AdviseError):
    """What the user gave cannot be used."""

    exit_code = 2


def refuse(faults: Iterable[Fault]) -> None:
    """Raise InputError with these faults, if there are any."""
    if faults := tuple(faults):
        raise InputError(faults=faults)


class NothingFits(AdviseError):
    """Nothing fits the hardware or the budget, or a plan was asked for where nothing is trained."""

    exit_code = 3


class MachineNotReady(AdviseError):
    """The machine lacks something the run needs: an extra, a driver, disk space, a permission."""

    exit_code = 4


class TrainingFailed(AdviseError):
    """A trainer ended without a usable result."""

    exit_code = 5


class OutOfMemory(TrainingFailed):
    """A trainer ran out of memory."""


class TooMuchLost(AdviseError):
    """A benchmark lost more than the plan's `max_drop` allows; the result is trained and saved."""

    exit_code = 6


class Stopped(AdviseError):
    """The user stopped it (Ctrl-C, SIGTERM)."""

    exit_code = 130


class NodeLost(Stopped):
    """A machine of a run on several was lost; the same command resumes."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


# Methods by the names of other tools and papers -> ours; close spelling does not lead from one to
# the other. Keys are in rules/tools/other_keys.yaml.
ELSEWHERE = {
    "ipo": "dpo",  # the same trainer with another loss: trl: {loss_type: ipo}
    "cpo": "simpo",
    "rlhf": "ppo",
    "reward": "rm",
    "pretraining": "cpt",
    "pt": "cpt",
    "instruction_tuning": "sft",
    "freeze": "full",
    "p_tuning": "prefix",
}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """'did you mean ...?' for a close known name, or an empty string."""
    known = list(known)
    ours = [ELSEWHERE[str(name)]] if ELSEWHERE.get(str(name)) in known else []
    close = ours or difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    # A word that one name alone begins with: "chat" of chat_assistant.
    begun = [one for one in known if str(one).startswith((f"{name}_", f"{name}-"))]
    close = close or (begun if len(begun) == 1 else [])
    return f"did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, name: object, known: Sequence[str], *, at: str) -> Fault:
    """The fault of a name that is not in a closed list."""
    return Fault(
        where=at,
        what=f"unknown {kind} '{name}'",
        allowed=f"known: {', '.join(sorted(known))}",
        hint=did_you_mean(name, known),
    )
