"""What the caller gives the wizard: checks of answers, an outcome, and what a menu does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from advisor.advice.types import Advice, Candidate
from advisor.data import profile
from advisor.ground.errors import Fault
from advisor.ground.types import DataProfile, Hardware
from advisor.ruleset.facts import Fact
from advisor.situation.names import NameLookup
from advisor.wizard.prompts import Ui
from advisor.wizard.walk import Relevant

Check = Callable[[str], str | None]  # what a person typed -> what is wrong with it, or None
# A data file, role -> column if that is known, what the task looks for ("reply", "label") -> the
# file measured; raises AdviseError.
Profile = Callable[[str, Mapping[str, str] | None, str | None], DataProfile]


class Checks(Struct, frozen=True, kw_only=True):
    """Checks of typed answers: each returns what is wrong, or None."""

    data_examples: Check = lambda text: None
    models: Callable[[str], NameLookup] = lambda name: NameLookup(
        id=name
    )  # what a model's name means
    reward_model: Check = lambda text: None
    profile: Profile = lambda path, mapping, wanted: profile(path, mapping=mapping, wanted=wanted)


class Interview(Struct, frozen=True, kw_only=True):
    """Whom the questions are put to, about which machine, and which of them matter."""

    facts: Mapping[str, Fact]
    hardware: Hardware
    ui: Ui
    checks: Checks = field(default_factory=Checks)
    relevant: Relevant | None = None
    state_file: Path | None = None  # keeps the answers; None: the file of this folder


class WizardOutcome(Struct, frozen=True, kw_only=True):
    """What `advise` made of the answers."""

    advice: Advice
    headline: str = ""  # what to do, in short
    plan: Any = None  # complete, or None
    plan_path: str | None = None  # where it was written
    missing: tuple[str, ...] = ()  # what a runnable plan still needs: "data.path"
    first_ask: str = ""  # the question that matters before it is shown, if it was not put
    other_machine: str = ""  # why the plan takes another machine; empty: this one can run it
    lacking: tuple[Fault, ...] = ()  # what this machine lacks; each hint is the line to type
    trial_steps: int = 0  # optimizer steps that read about 50 rows; 0: no trial
    downloads: tuple[str, ...] = ()  # models: size, licence, room for them, in words
    general: str | None = None  # what mixes general rows in, or leaves them out: "replay={...}"
    first: str = ""  # what happens before it trains: "downloads 15.3 GiB first"

    @property
    def is_complete(self) -> bool:
        """Whether there is a plan that fits and that `advise run` starts on its machine."""
        stages = self.advice.recommendation.stages
        return self.plan is not None and not self.missing and bool(stages) and self.advice.fits


class Actions(Struct, frozen=True, kw_only=True):
    """What the menu does, given by the caller. Any of them may raise AdviseError."""

    show: Callable[[WizardOutcome], None]  # print the recommendation
    show_all: Callable[[WizardOutcome], None]  # print everything that is said of it
    next_steps: Callable[[WizardOutcome], None]  # print what to do if nothing is trained
    why: Callable[[WizardOutcome], None]  # print what decided, with facts and sources
    run: Callable[[WizardOutcome], int]  # train; the exit code
    trial: Callable[[WizardOutcome], int]  # train on a few rows; the exit code
    bundle: Callable[[WizardOutcome], list[str]]  # pack it for another machine; what to say of it
    choose: Callable[[WizardOutcome, Candidate], WizardOutcome]  # with another method
    plan: Callable[[WizardOutcome], None]  # print the launch file
    explain: Callable[[WizardOutcome, Candidate], None]  # print everything about one candidate
    # With general rows in the plan, or without.
    set_general: Callable[[WizardOutcome], WizardOutcome] = lambda outcome: outcome
