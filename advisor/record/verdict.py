"""The verdict on a run as run.json holds it: three lines that one can act on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Final

from msgspec import field

from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Keys, ListOf, Number, Text
from advisor.ground.yaml_files import read_shipped

BETTER: Final = "better"
WORSE: Final = "worse"
UNCLEAR: Final = "not distinguishable"
KEPT: Final = "kept"
LOST: Final = "lost"
NOT_MEASURED: Final = "not measured"
MIXED: Final = "mixed"


class VerdictPart(JsonObject, frozen=True, kw_only=True):
    """What was found on one question, in a word and in a sentence."""

    status: Annotated[str, "the word"]
    text: Annotated[str, "the numbers that it rests on"] = ""


class NextStep(JsonObject, frozen=True, kw_only=True):
    """What to do after the run."""

    action: Annotated[
        str,
        "ship, try_it, run_whole, train_longer, train_shorter, lower_rate, mix_general,"
        " hold_out_more, more_data, look_at_data or measure",
    ]
    text: Annotated[str, "the same in words"]
    command: Annotated[str | None, "to paste, from where the run was started"] = None


class PlainResult(JsonObject, frozen=True, kw_only=True):
    """What came of a run, for people who read no metrics, and the count that it rests on."""

    text: Annotated[str, "one sentence; of several tasks one after the other"]
    good: Annotated[int | None, "how many of `of` are as they should be", OMIT_NULL] = None
    before: Annotated[int | None, "how many were before the training", OMIT_NULL] = None
    of: Annotated[int | None, "questions, texts or pairs that were not trained on", OMIT_NULL] = (
        None
    )


class Verdict(JsonObject, frozen=True, kw_only=True):
    """Whether the result is better than the base, whether it lost anything, and what to do next."""

    ok: Annotated[bool, "true if every check passed; whether anything was lost is in `general`"]
    word: Annotated[
        str | None,
        "better, worse, not distinguishable, mixed; 'better at the task, worse in general' where"
        " something was lost",
    ] = None
    text: Annotated[str | None, "the verdict in a sentence"] = None
    plain: Annotated[PlainResult | None, "the same for people who read no metrics", OMIT_NULL] = (
        None
    )
    task: Annotated[
        VerdictPart | None, "better, worse, not distinguishable, mixed or not measured", OMIT_NULL
    ] = None
    general: Annotated[VerdictPart | None, "kept, lost, mixed or not measured", OMIT_NULL] = None
    extras: Annotated[
        Mapping[str, VerdictPart], "optional feature -> what it found: kept, lost or mixed"
    ] = field(default_factory=dict)
    next: Annotated[NextStep | None, "what to do next", OMIT_NULL] = None

    @property
    def is_good(self) -> bool:
        """Whether nothing speaks against the result."""
        return self.ok and self.word == BETTER

    def lines(self) -> list[tuple[str, str]]:
        """(what it is about, what it says), three or four; the command stands in `next`."""
        said = [
            (name, f"{one.status}{': ' if one.text else ''}{one.text}")
            for name, one in (("task", self.task), ("general", self.general), *self.extras.items())
            if one is not None
        ]
        return [*said, ("next", self.next.text)] if self.next is not None else said


LIMIT = Keys(
    keys={
        "value": Number(min=0),
        "unit": Text(help="what the value counts"),
        "because": Text(),
        "sources": ListOf(of=Text()),
    },
    required=("value", "unit", "because", "sources"),
)


NAMES = (
    "general_lost", "general_halved", "general_rows", "answers_end", "repeats", "still_falling",
    "at_floor", "no_effect", "rate_factor", "in_style", "noise_times", "assumed_noise", "overfits",
    "given_back", "by_heart", "ended", "half", "guessing", "blown",
)  # fmt: skip
VERDICT_FILE = Keys(
    help="What makes the verdict on a finished run",
    keys={"limits": Keys(keys=dict.fromkeys(NAMES, LIMIT), required=NAMES)},
    required=("limits",),
)


@cache
def limits() -> Mapping[str, float]:
    """Name -> limit, in the file's unit. Raises InputError with every fault, located."""
    stated = read_shipped(rules_dir() / "verdict.yaml", shape=VERDICT_FILE).data["limits"]
    return {name: float(stated[name]["value"]) for name in NAMES}
