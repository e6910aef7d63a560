"""One stage to be fitted as a value, and its settings by rule. Every value keeps its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import NODEFAULT, Struct, field

from advisor.advice.facts import device, model_facts
from advisor.advice.types import (
    ALONE,
    MEMORY_LEFT,
    NO_CONCESSIONS,
    Chosen,
    Concessions,
    Strategy,
    values_of,
)
from advisor.estimate.trainers import OURS, Trainer, trainer_of
from advisor.ground.annotated import defaults_of
from advisor.ground.types import FSDP, DataProfile, ModelShape
from advisor.methods import methods
from advisor.methods.composition import Composition
from advisor.methods.families import DECODER, ENCODER, SEQ2SEQ, kind_of_type
from advisor.methods.model import Objective
from advisor.plan.keys import key_specs
from advisor.plan.model import Stage
from advisor.ruleset.judge import judge
from advisor.ruleset.model import Rule, Ruleset
from advisor.situation.types import Situation

if TYPE_CHECKING:
    from advisor.methods.engines import Engine

SETTINGS = "settings"  # the table that is asked stage by stage
JUDGED = ("preference", "unpaired_feedback")  # answers that somebody judged
RATE = "learning_rate"  # every stage has one
BATCH = "effective_batch_size"  # no plan key: rows of an optimizer step, which the search splits
USUAL_BATCH = Chosen(value=16, because="usual")
MICRO_BATCHES = (16, 8, 4, 2, 1)
DEFAULTS = {name: one for name, one in defaults_of(Stage).items() if one is not NODEFAULT}


class StageCase(Struct, frozen=True):
    """One stage of a composition, in a situation and under rules."""

    ruleset: Ruleset
    situation: Situation
    facts: Mapping[str, Any]
    composition: Composition
    objective: str
    strategy: Strategy = ALONE  # the same for all stages of a plan
    concessions: Concessions = NO_CONCESSIONS  # what is given up beforehand so that it fits
    memory_left: str = MEMORY_LEFT[0]  # whose settings to begin with
    # Keys of a module that goes on from another stage, which stand over the stage's own.
    module: Mapping[str, Chosen] = field(default_factory=dict)
    engine: Engine | None = None  # that trains it; None: the bundled trainers

    @property
    def method(self) -> Objective:
        return methods().objective(self.objective)

    @property
    def update(self) -> str:
        return self.composition.update or "lora"

    @property
    def axes(self) -> dict[str, Any]:
        """What decides which values go together, in the words of a plan."""
        axes = {
            "objective": self.objective,
            "update": self.update,
            "quantization": self.composition.quantization,
        }
        return axes | ({"head": SEQ2SEQ} if self.composition.encoder and self.is_seq2seq else {})

    @property
    def trainer(self) -> Trainer:
        """Whose traits decide memory and time."""
        if self.engine is None or not self.engine.trainer:
            return OURS
        return trainer_of(self.engine.trainer, {}, self.engine.found.source.checked)

    @property
    def is_module(self) -> bool:
        return methods().update(self.update).is_module

    @property
    def cards(self) -> int:
        return max(1, len(self.situation.hardware.gpus))

    @property
    def on_cpu(self) -> bool:
        return device(self.situation.hardware) == "cpu"

    @property
    def is_seq2seq(self) -> bool:
        return is_seq2seq(self.situation.model)

    @property
    def context_tokens(self) -> int | None:
        return self.situation.model.context_tokens if self.situation.model else None

    @property
    def micro_batches(self) -> Sequence[int]:
        """The micro-batch sizes that its methods accept, largest first."""
        key = "micro_batch_size"
        axes = (self.objective, self.update)
        return [size for size in MICRO_BATCHES if not refusals(*axes, {key: size})]

    @property
    def levels(self) -> Sequence[str]:
        """The amounts of memory whose settings may be taken, the usual ones first."""
        end = len(MEMORY_LEFT) - (self.is_module and not self.concessions.least_module)
        return MEMORY_LEFT[MEMORY_LEFT.index(self.memory_left) : end]

    @property
    def profiles(self) -> Sequence[DataProfile]:
        """What it reads: the data, each task's own, or examples beside a corpus."""
        situation = self.situation
        if needs_examples(situation, self.objective) and situation.examples is not None:
            return [situation.examples]
        if situation.data is not None:
            return [situation.data]
        return [profile for profile in situation.tasks.values() if profile.tokens is not None]

    @property
    def profile(self) -> DataProfile | None:
        """The data whose rows decide its lengths: of several tasks those with the longest row."""
        return max(
            self.profiles, key=lambda one: one.tokens.longest if one.tokens else 0, default=None
        )

    def seen(self) -> dict[str, Any]:
        """What the table of settings sees."""
        axes = axes_of(self.objective, self.update, self.composition.quantization)
        found = {**self.facts, **axes, "architecture": DECODER}
        if self.composition.encoder:
            found["architecture"] = SEQ2SEQ if self.is_seq2seq else ENCODER
        if (model := self.situation.model) is not None:
            # Also of a suggested model: its size decides the learning rate.
            found["params_b"] = model.params / 1e9
            found |= model_facts(model)
            if model.instruct is not None:
                found.setdefault("checkpoint_kind", "instruct" if model.instruct else "base")
        return found

    def settings(
        self, memory_left: str | None = None, packing_suits: str = "unknown"
    ) -> dict[str, Chosen]:
        """What the rules set, before anything is fitted."""
        seen = {**self.seen(), "memory_left": memory_left or self.memory_left}
        if packing_suits != "unknown":
            seen["packing_suits"] = packing_suits
        found = settings_by_rule(self.ruleset, seen)
        if "replay" in found and (silent := self._silent_base(seen.get("checkpoint_kind"))):
            because = f"{silent}: general text named here would keep what it can do"
            found["replay"] = Chosen(value=None, because=because)
        return found

    def _silent_base(self, kind: str | None) -> str:
        """Why the base does not answer general questions before it is trained, if it does not."""
        if kind != "instruct":
            says = "follows no instructions yet" if kind else "may follow no instructions yet"
            return f"by its name it {says}"
        return "a base divided over GPUs answers nothing" if self.strategy.name == FSDP else ""

    def warnings(self) -> tuple[Rule, ...]:
        """The `warn` rules of the settings table that fire."""
        found = judge(self.ruleset, SETTINGS, self.seen()).warnings
        if self.engine is None:
            return found
        # Those about a quantised base are about the bundled trainers.
        return tuple(one for one in found if all(seen.fact != "quantization" for seen in one.when))


def is_seq2seq(model: ModelShape | None) -> bool:
    """Whether an encoder reads and a decoder writes."""
    return model is not None and kind_of_type(model.architecture) == SEQ2SEQ


def needs_examples(situation: Situation, objective: str) -> bool:
    """Whether a stage learns from the examples beside the data: beside documents it has to, beside
    pairs or votes it does where there are any.
    """
    if objective != "sft" or situation.data is None:
        return False
    is_beside = situation.examples is not None and situation.data.kind in JUDGED
    return situation.data.kind == "raw_text" or is_beside


def axes_of(objective: str, update: str, quantization: str | None) -> dict[str, str]:
    """What the table of settings sees of a stage itself."""
    return {"objective": objective, "update": update, "quantization": quantization or "none"}


def settings_by_rule(ruleset: Ruleset, facts: Mapping[str, Any]) -> dict[str, Chosen]:
    """Stage key -> chosen value, for the stage whose axes are among the facts; BATCH is a key."""
    axes = {"objective": facts["objective"], "update": facts["update"]}
    found = {
        key: Chosen(
            value=value, because=rule.because, rule=rule.id, is_own=rule.layer in ruleset.overlays
        )
        for key, (value, rule) in judge(ruleset, SETTINGS, facts).settings.items()
    }
    declared = key_specs().allowed(**axes)
    for key, because in refusals(**axes, values=values_of(found)).items():
        default = declared[key].default if key in declared else DEFAULTS[key]
        found[key] = Chosen(value=default, because=because)
    # A method of one's own may have no rule for it.
    if RATE not in found and (rate := _rate_of_file(**axes)) is not None:
        found[RATE] = Chosen(value=rate, because="the default in its method's file")
    return found


def _rate_of_file(objective: str, update: str) -> Any:
    """The learning rate in the files of the methods. That of an update is for learning given texts:
    an objective that compares or scores answers takes a tenth of it, and so has to name its own.
    """
    learned = methods().objectives.get(objective)
    if learned is not None and not learned.learns_texts:
        return learned.defaults.get(RATE)
    return key_specs().default(RATE, objective=objective, update=update)


def refusals(objective: str, update: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Stage key -> why a stage of these axes cannot have its value, for each that is refused."""
    found: dict[str, str] = {}
    for owner, one in key_specs().refused({**values, "objective": objective, "update": update}):
        if one.key in values:
            because = f"the {owner} does not go with {as_yaml(values[one.key])}: {one.because}"
            found[one.key] = f"{found[one.key]}; {because}" if one.key in found else because
    return found


def as_yaml(value: Any) -> str:
    """A value as a plan writes it: true for True."""
    return str(value).lower() if isinstance(value, bool) else str(value)
