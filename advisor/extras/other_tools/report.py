"""All that is said of one configuration, as one JSON document, which page.py prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from advisor.advice.flips import one_card
from advisor.estimate import cost_estimate, hardware_machine
from advisor.estimate.answers import document_of
from advisor.estimate.memory.bands import HEAD_ROOM
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.run import Rows, Run
from advisor.estimate.trainers import trainer_of
from advisor.extras.other_tools.data_sets import MeasuredData, measure_data
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.findings import (
    EITHER,
    TEMPLATE,
    Known,
    ToolFinding,
    by_rules,
    facts_of,
    general_rules,
    generation_facts,
    holds,
    template_facts,
    worst_first,
)
from advisor.extras.other_tools.mapping import (
    COMMAND,
    DATA_KIND,
    NO_DATA,
    CarriedPlan,
    Lost,
    ReadKeys,
    at_key,
    flat_stage,
    held_names,
    read,
    to_plan,
    usual_values,
    write,
)
from advisor.extras.other_tools.out_of_memory import document_of as document_of_error
from advisor.extras.other_tools.script import table
from advisor.extras.other_tools.tool import Context, deepspeed_offloads
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.memory_errors import MemoryRanOut
from advisor.ground.types import Hardware, ModelShape
from advisor.ground.units import GIB, format_count, format_duration, format_gib, format_usd
from advisor.methods import methods
from advisor.methods.stage import stage_keys
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from advisor.probe.catalogue import cheapest_cards
from advisor.record.smaller import (
    SHORTEST_SEQ_LEN,
    Change,
    least_hungry,
    single_changes,
    smallest_that_fits,
    yaml_value,
)
from advisor.ruleset.phrases import joined
from advisor.situation.catalogue import is_instruct
from advisor.situation.models import model_shape, usable_shape
from advisor.situation.of_plan import evaluation_rows, plan_run

SCHEMA_VERSION = 1
RATE, MODEL = "learning_rate", "model_name_or_path"
WHOLE_PROCESS = "nvidia-smi"  # all memory of the process: what has to fit
# Liger's loss never makes whole logits.
LIGER = Change(
    {"kernels": "liger"},
    "takes the loss from parts of the logits and layers from fused kernels",
    "the same result; liger-kernel has to be installed and know the model",
)
FELT = 0.98  # of the need: a change that leaves more is none
MENDED = ("error", "warning")  # the severities whose changes stand in the diff
# A configuration names its model itself: its size cannot be said beside it.
BY_FLAG, BY_FOLDER = "; say --model-params-b", "; a folder that holds its config.json would"
OURS = "plan."  # before a key of a plan, in `instead`
# What of the facts follows from which settings.
ROWS = {"per_device_train_batch_size", "gradient_accumulation_steps", "packing"}
FOLLOWS: Mapping[str, set[str]] = {
    "steps": {*ROWS, "max_steps", "num_train_epochs"},
    "data": {*ROWS, "max_length"},
    "generations": {*ROWS, "num_generations", "generation_batch_size", "steps_per_generation"},
    "rate": {RATE, "load_in_4bit", "use_peft"},
}
AND_YET = (
    "the estimate says that it fits, and the error text that it did not: that run had other values,"
    " other processes held memory, or its rows are longer than counted here"
)
PINNED = "{} {} is asked for: its way to make the loss is counted; all else is as said above"
OTHER_TRAINING = "the plan teaches the model to write answers, which is another training"
NO_KEY = "no key of this file says all that would make it fit ({}): that takes a hand"
SHOWN_CARDS, SHOWN_TERMS, SHOWN_CHANGES, FEW = 3, 3, 5, 2
QUANTIZED = {"nf4": " on a base in 4 bits", "int8": " on a base in 8 bits"}


class Fitting(Struct, frozen=True, kw_only=True):
    """What a configuration takes on a machine."""

    document: Mapping[str, Any]  # as `advise estimate --json` says it
    cost_usd: float | None = None
    price: str = ""  # where it is from, or why there is none
    change: Change | None = None  # of a plan's keys; None: it fits, or nothing does
    changed: Mapping[str, Any] | None = None  # the document with the change
    cards: tuple[str, ...] = ()  # cheapest cards that hold it as it is
    least_bytes: int | None = None  # with every change together, if not even that fits
    changed_card: str = ""  # the cheapest card that then holds it with a change
    ways: Sequence[tuple[Change, int]] = ()  # each change alone that saves, and what is then needed

    @property
    def fits(self) -> str:
        """fits, tight, may_fit, too_big or unknown; too big once the need itself is above."""
        found = str(self.document.get("fits", "unknown"))
        is_above = found == "may_fit" and self.document["need_gib"] > self.document["limit_gib"]
        return "too_big" if is_above else found

    @property
    def should_fit(self) -> bool:
        """Only the upper end of the band is above: what the search for a change takes as enough."""
        return self.document.get("fits") == "may_fit" and _is_enough(self.document)


def _is_enough(document: Mapping[str, Any]) -> bool:
    """Whether the need itself leaves a tenth free: bands of other trainers are wide."""
    limit = document.get("limit_gib")
    return limit is not None and document["need_gib"] <= (1 - HEAD_ROOM) * limit


class ConfigurationReport:
    """A configuration on a machine, of which some things were guessed (`said`), the plan that it
    becomes, and all that is said of it. What is wrong with its data is added to the file's faults.
    """

    carried: CarriedPlan | None = None  # None: not even a plan's first keys
    shape: ModelShape | None = None
    fit: Fitting | None = None
    change: Mapping[str, Any] = {}  # the smallest one that fits, in the words of the tool
    # What settings that are not known lead to: the values that need least and most, and the bytes.
    between: Sequence[tuple[Mapping[str, Any], int]] = ()

    def __init__(
        self,
        file: ToolFile,
        hardware: Hardware,
        said: Sequence[str] = (),
        ran_out: MemoryRanOut | None = None,
    ) -> None:
        self.ran_out = ran_out or file.ran_out
        self.file, self.hardware, self.data = file, hardware, measure_data(file)
        self.profile = self.data.profile
        self.known = {**file.defaults, **file.values}
        self.reading = _reading(file, self.data)
        self.notes = [*said, *file.notes, file.command.assumed, *self.data.notes]
        self.notes += [PINNED.format(name, release) for name, release in file.pinned.items()]
        self.why: list[str] = []  # there is no estimate
        tokens = self.profile.tokens if self.profile is not None else None
        device, tool = "cpu" if hardware.kind == "cpu" else "cuda", file.about.name
        around = {
            "data": self.data.plan or {"path": NO_DATA},
            "launch": {"device": device, "processes": max(1, len(hardware.gpus))},
            "origin": {"composition": f"{tool}: {file.name}"},
        }
        longest = None if tokens is None else tokens.longest
        self.around, self.longest = around, longest
        versions = {file.tool: file.about.release, **file.about.made_with, **file.pinned}
        self.trainer = trainer_of(file.about.name, versions, None)
        try:
            self.carried = self._carried(self.reading)
        except InputError as error:
            self.why.append(str(error))
        if file.not_estimated:
            self.why = [file.not_estimated]
        elif MODEL in file.left_out:
            why = file.left_out[MODEL].why
            self.why = [f"the code does not say the model: {why}; --model NAME says it"]
        elif self.carried is not None:
            self.shape = self._shape(self.carried.plan.model)
        if self.carried is not None and self.shape is not None:
            self.fit = self._fitting(self.carried.plan, self.shape)
            if self.fit.change is not None:
                changed = self._their_changes(self.carried.plan, self.fit.change.values)
                self.change = {
                    **dict.fromkeys(self._fills_up(self.carried.plan.stages[0]), False),
                    **changed,
                }
        if self.fit is not None and self.fit.changed is not None and self.fit.change is not None:
            written = self._need(self.change)
            most = self.fit.changed["need_gib"] * GIB / FELT
            if written is None or written.need_bytes > most:
                self.notes.append(NO_KEY.format(self.fit.change.why))
        if self.ran_out is not None and self.fit is not None and self.fit.fits in ("fits", "tight"):
            self.notes.append(AND_YET)
        self.findings = worst_first([*file.faults, *self._by_rules()])
        self.document = self._document()

    def _carried(self, reading: ReadKeys) -> CarriedPlan:
        carried = to_plan(reading, self.file.about.name, self.around, self.longest)
        open_ = [
            Lost(key=key, value=None, why=f"not known: {one.why}; a default stands in the plan")
            for key, one in self.file.left_out.items()
            if key not in self.file.about.no_effect and not key.startswith("dataset")
        ]
        if why := self.file.not_estimated:
            open_.append(Lost(key="trainer", value=why, why=OTHER_TRAINING))
        return replace(carried, lost=(*carried.lost, *open_)) if open_ else carried

    def _document(self) -> dict[str, Any]:
        file, fit, carried, reading = self.file, self.fit, self.carried, self.reading
        changes = self._all_changes()
        return {
            "schema_version": SCHEMA_VERSION,
            "checked": file.checked,
            "path": file.name,
            "tool": file.tool,
            "release": file.about.release,
            "command": file.command.name,
            "verdict": "unknown" if fit is None else fit.fits,
            "summary": self._summary(),
            "change": dict(self.change) or None,
            "what": list(self._what()),
            "takes": [] if fit is None else list(self._takes(fit)),
            "memory": None if fit is None else dict(fit.document),
            "memory_with_change": None if fit is None or fit.changed is None else dict(fit.changed),
            "ways": [] if fit is None else list(self._ways(fit)),
            "cost_usd": None if fit is None else fit.cost_usd,
            "plan": reading.ours,
            "defaults": sorted(key for key, one in reading.carried.items() if one.is_default),
            "gpus": len(self.hardware.gpus),
            "data": self.data.words,
            "findings": [asdict(one) for one in self.findings],
            "changes": changes,
            "diff": file.diff(changes),
            "not_carried": [] if carried is None else [asdict(one) for one in carried.lost],
            "no_effect_on_training": reading.no_effect,
            "notes": list(filter(None, self.notes)),
            **file.told(),
            **({} if self.ran_out is None else {"out_of_memory": document_of_error(self.ran_out)}),
        }

    def _shape(self, name: str) -> ModelShape | None:
        """The model's dimensions: of a folder beside the file, or of a name."""
        beside, last = self.file.path.parent / name, Path(name).name
        try:
            shape, notes = model_shape(str(beside) if beside.is_dir() else name)
        except AdviseError as error:
            shape = usable_shape(last) if self.file.checked == "script" else None
            if shape is None:
                self.why.append(str(error))
                return None
            notes = [f"the folder {name} is not here; sized by its name, {last}"]
        told = self.why if shape is None else self.notes
        told += [note.replace(BY_FLAG, BY_FOLDER) for note in notes]
        return None if shape is None else replace(shape, instruct=is_instruct(name))

    # ----------------------------------------------------------------------- what it takes

    def _fitting(self, plan: Plan, shape: ModelShape) -> Fitting:
        """What the plan's one stage takes when the tool runs it, with one process a GPU."""
        stage, gpus = plan.stages[0], self.hardware.gpus
        machine = hardware_machine(self.hardware)
        evaluated = None
        if self.profile is not None and self.profile.tokens is not None:
            evaluated = evaluation_rows(stage, self.profile)

        fills_up = self._fills_up(stage)

        def documented(one: Stage, *, filled: bool = False) -> dict[str, Any]:
            run = self._run(plan, one, shape, filled=filled)
            return document_of(run, machine, warnings=[], evaluated=evaluated)

        document = documented(stage, filled=bool(fills_up))
        if document.get("peak_gib") is None:
            return Fitting(document=document)
        document |= self._left_open(document)
        # Of what is enough already only a change that holds the whole band is one.
        whole_band = _is_enough(document)

        def fits(one: Stage, there: Hardware = self.hardware) -> bool:
            found = memory_estimate(self._run(plan, one, shape, there))
            limit = there.device_memory_bytes
            if found is None or limit is None:
                return False
            if whole_band:
                return found.need_high_bytes <= limit
            return found.need_bytes <= (1 - HEAD_ROOM) * limit

        hours, gpu = document.get("hours"), gpus[0].spec if gpus else None
        cost, price = cost_estimate(None if hours is None else hours * 3600, max(1, len(gpus)), gpu)
        change, cards, ways = None, tuple[str, ...](), list[tuple[Change, int]]()
        harmless = self._harmless(plan)
        smallest = partial(smallest_that_fits, stage, harmless=harmless)
        if document.get("fits") in ("too_big", "may_fit"):
            padded = Change({}, "pads rows to the longest of their batch alone")
            change = padded if fills_up and fits(stage) else smallest(fits)
            keys = {key for kind in harmless for key in kind[0].values}
            for one in single_changes(stage, harmless):
                if one.values.keys() <= keys and not any(one in kind for kind in harmless):
                    continue  # shorter rows, which need not be cut
                need = memory_estimate(self._run(plan, one.applied(stage), shape))
                if need is not None and need.need_bytes <= FELT * document["need_gib"] * GIB:
                    ways.append((one, need.need_bytes))
        if document.get("fits") != "fits":  # the upper end of the band is held
            found = cheapest_cards(round(document["need_high_gib"] * GIB))
            cards = tuple(spec.name for spec in found[:SHOWN_CARDS])
        least, changed_card = None, ""
        if change is None and document.get("fits") != "fits":
            most = least_hungry(stage, harmless).applied(stage)
            least = memory_estimate(self._run(plan, most, shape))
            if not gpus or not cards:
                machines = map(one_card, cheapest_cards(0))
                holding = (
                    one.gpus[0].name
                    for one in machines
                    if smallest(partial(fits, there=one)) is not None
                )
                changed_card = next(holding, "")
        return Fitting(
            document=document, cost_usd=cost, price=price, change=change, cards=cards,
            least_bytes=None if least is None else least.need_bytes, changed_card=changed_card,
            changed=None if change is None else documented(change.applied(stage)), ways=ways,
        )  # fmt: skip

    def _harmless(self, plan: Plan) -> list[list[Change]]:
        """Kinds of changes that alter no result and that the tool has a key for: sequences as short
        as the longest row, and Liger's loss.
        """
        stage, kinds = plan.stages[0], list[list[Change]]()
        if stage.packing and self.longest:
            lengths = (stage.seq_len >> times for times in range(1, stage.seq_len.bit_length()))
            costs = "no row is longer, so none is cut; a step holds fewer tokens"
            why = "packs into shorter sequences"
            least = max(self.longest, SHORTEST_SEQ_LEN)
            kinds.append([Change({"seq_len": one}, why, costs) for one in lengths if one >= least])
        if self._loss(stage) == "full" and self._loss(LIGER.applied(stage)) == "chunked":
            kinds.append([LIGER] if self._their_changes(plan, LIGER.values) else [])
        return list(filter(None, kinds))

    def _loss(self, stage: Stage) -> str | None:
        """How the tool makes the loss of a stage; None: as its trainer always does."""
        tiles = stage.objective in self.trainer["tiled_loss"]
        facts = {"plan.kernels": stage.kernels, "plan.tiles_loss": tiles}
        known = Known(self.file.values, self.file.defaults, facts)
        for one in self.file.about.losses:
            if all(holds(known, name, wanted) for name, wanted in one["when"].items()):
                return str(one["loss"])
        return self.file.stated.get("loss", None if tiles else "full")

    def _left_open(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The band over all values that settings which are not known may have, and what fits then;
        empty if there are none that matter.
        """
        ends: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for key, options in self.file.left_open().items():
            tried = [self._need({key: one}) for one in options]
            needs = {one: need.need_bytes for one, need in enumerate(tried) if need is not None}
            for end, pick in zip(ends, (min, max), strict=True):
                if len(set(needs.values())) > 1:
                    end[key] = options[pick(needs, key=needs.__getitem__)]
        low, high = map(self._need, ends)
        if not ends[0] or low is None or high is None:
            return {}
        self.between = [(end, need.need_bytes) for end, need in zip(ends, (low, high), strict=True)]
        limit, fits = self.hardware.device_memory_bytes, document.get("fits")
        if limit is not None and low.need_low_bytes > limit:
            fits = "too_big"
        elif limit is not None and high.need_high_bytes > limit:
            fits = "unknown"
        return {
            "need_low_gib": min(document["need_low_gib"], round(low.need_low_bytes / GIB, 3)),
            "need_high_gib": max(document["need_high_gib"], round(high.need_high_bytes / GIB, 3)),
            "fits": fits,
        }

    def _need(self, values: Mapping[str, Any]) -> Any:
        """The estimate of the same training with other values of some settings."""
        try:
            carried = self._carried(_reading(self.file, self.data, values))
            shape = self._shape(carried.plan.model) if MODEL in values else self.shape
        except InputError:
            return None
        if shape is None:
            return None
        return memory_estimate(self._run(carried.plan, carried.plan.stages[0], shape))

    def _fills_up(self, stage: Stage) -> list[str]:
        """The keys of the file that pad every row to the whole length."""
        if stage.packing:
            return []
        return [
            key
            for key, objectives in self.file.about.fills_up.items()
            if stage.objective in objectives and at_key(self.file.values, key) is True
        ]

    def _run(
        self,
        plan: Plan,
        stage: Stage,
        shape: ModelShape,
        hardware: Hardware | None = None,
        *,
        filled: bool = False,
    ) -> Run:
        about, values = self.file.about, self.file.values
        run = plan_run(plan, stage, shape, hardware or self.hardware, self.profile)
        if filled:  # every row is as long as the longest may be
            rows = run.rows.rows_total
            tokens = None if rows is None else rows * stage.seq_len
            run = replace(run, rows=Rows(tokens_total=tokens, rows_total=rows))
        if (share := self._served(shape, stage)) is not None:
            served = replace(run.stage, options={**run.stage.options, "server_memory": share})
            run = replace(run, stage=served)
        offloads = any(at_key(values, key) is True for key in about.offloads)
        if (named := values.get("deepspeed")) is not None:
            offloads |= deepspeed_offloads(named, Context(folder=self.file.path.parent))
        divides = run.device.gpus > 1 and run.device.sharding in ("fsdp", "zero3")
        loss = self._loss(stage)
        stated = {**({} if loss is None else {"loss": loss}), **self.file.stated}
        run = replace(run, trainer=self.trainer, stated=stated)
        device = replace(run.device, counter=WHOLE_PROCESS, offloads=offloads and divides)
        return replace(run, device=device)

    def _served(self, shape: ModelShape, stage: Stage) -> float | None:
        """The share of the GPU that a vLLM in the trainer's process takes; None without one."""
        is_served = self.known.get("use_vllm") is True and self.known.get("vllm_mode") == "colocate"
        share, limit = (
            self.known.get("vllm_gpu_memory_utilization"),
            self.hardware.device_memory_bytes,
        )
        if not is_served or not isinstance(share, float) or not 0 < share <= 1:
            return None
        if self.file.stated.get("shares_weights") and limit:  # they are counted already
            each = table()["shared_bytes"][stage.quantization or "none"]
            share = max(0.01, share - each * shape.params / limit)
        return share

    # ----------------------------------------------------------------------- findings and changes

    def _facts(self) -> dict[str, Any]:
        """What the rules may ask for beside the keys of the file."""
        facts: dict[str, Any] = {}
        if self.carried is not None:
            plan = self.carried.plan
            facts = facts_of(plan, self.profile, self.shape, self.hardware)
            facts |= template_facts(self.file.about, plan.model, self.known.get(TEMPLATE))
            facts["plan.tiles_loss"] = plan.stages[0].objective in self.trainer["tiled_loss"]
        facts |= {COMMAND: self.file.judged_as or self.file.command.name, DATA_KIND: self.data.kind}
        facts |= generation_facts(self.file.tool, self.known, max(1, len(self.hardware.gpus)))
        if self.data.holds_out:
            facts["evaluates"] = True
        targets = self.reading.carried.get("target_modules")
        if targets is not None and targets.is_default:
            facts["plan.targets_attention_alone"] = False  # its own rules say what the default is
        return facts

    def _by_rules(self) -> Iterator[ToolFinding]:
        """What rules say, at the first key of the file that is to be changed or was asked for."""
        known = Known(self.file.values, self.file.defaults, self._facts())
        for one in by_rules((*self.file.about.findings, *general_rules()), known):
            asked = [key.split(".*")[0] for name in one.asked for key in name.split(EITHER)]
            keys: list[str] = []
            for name in (*(one.instead or {}), *asked):
                carried = self.reading.carried.get(name.removeprefix(OURS))
                keys += carried.theirs if carried and name.startswith(OURS) else (name,)
            if one.id in self.file.unsaid or any(
                map(self._is_open, (*(one.instead or {}), *asked))
            ):
                continue  # it is about what is not known
            where = next((self.file.at(key) for key in keys if known.is_set(key)), "")
            yield replace(one, where=where)

    def _is_open(self, name: str) -> bool:
        """Whether what a rule asks for follows from a setting that is not known."""
        open_, top = self.file.left_out.keys(), name.split(".")[0]
        if not open_ or top in open_ or open_ & FOLLOWS.get(top, set()):
            return bool(open_)
        ours = name.removeprefix(OURS) if name.startswith(OURS) else None
        for entry in self.file.about.mapping if ours is not None else ():
            for one in entry.get("either", ()):
                if ours in one["ours"] and open_ & one["theirs"].keys():
                    return True
            if entry.get("ours") == ours and entry["theirs"] in open_:
                return True
        return False

    def _all_changes(self) -> dict[str, Any]:
        """What the diff changes: what mends findings, and what makes it fit, which wins."""
        both: dict[str, Any] = {}
        for one in self.findings:
            if one.severity in MENDED:
                both |= one.instead or {}
        if self.fit is not None and not self.fit.should_fit:
            both |= self.change
        ours = {key.removeprefix(OURS): both.pop(key) for key in list(both) if key.startswith(OURS)}
        if not ours or self.carried is None:
            return both
        return self._their_changes(self.carried.plan, ours) | both

    def reasons(self) -> dict[str, str]:
        """Key of the file -> why it is to change."""
        found = {}
        if self.fit is not None and self.fit.change is not None:
            found = dict.fromkeys(self.change, f"to fit: {self.fit.change.why}")
        for one in self.findings:
            ours = [key.removeprefix(OURS) for key in one.instead or () if key.startswith(OURS)]
            theirs = [key for key in one.instead or () if not key.startswith(OURS)]
            for key in ours:
                carried = self.reading.carried.get(key)
                theirs += carried.theirs if carried else ()
            found |= dict.fromkeys(theirs, one.text)
        return found

    def _their_changes(self, plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
        """Changes of a plan's keys in the words of the tool: what would be written otherwise."""
        stage, command = plan.stages[0], self.file.command.name

        def written(one: Stage) -> Mapping[str, Any]:
            usual = usual_values(one.objective, one.update)
            ours = flat_stage(plan, one)
            return write(self.file.about, ours, command=command, usual=usual).values

        own = {key: value for key, value in values.items() if key in stage_keys()}
        more = {key: value for key, value in values.items() if key not in own}
        rate = own.get(RATE, stage.learning_rate)
        changed = replace(stage, **{**own, RATE: rate}, options={**stage.options, **more})
        if rate is None:  # the usual one of the new method
            usual = key_specs().default(RATE, objective=changed.objective, update=changed.update)
            changed = replace(changed, learning_rate=usual or stage.learning_rate)
        before, after = written(stage), dict(written(changed))
        for key in {key for entry in self.file.about.mapping for key in held_names(entry)}:
            listed = self.known.get(key)  # which may name more
            if key in after and isinstance(listed, list):
                after[key] = [*listed, *(one for one in after[key] if one not in listed)]
        gone = [key for key in before if key not in after and key in self.file.values]
        after |= {key: self.file.defaults.get(key) for key in gone}
        return {
            key: value
            for key, value in after.items()
            if before.get(key) != value and self.known.get(key) != value
        }

    def _ways(self, fit: Fitting) -> Iterator[dict[str, Any]]:
        """Each change that alone needs less, in the words of the tool, what costs least first."""
        assert self.carried is not None
        for one, need in fit.ways:
            change = self._their_changes(self.carried.plan, one.values)
            yield {
                "change": change,
                "at": {key: self.file.taken_by(key) for key in change},
                "need_gib": round(need / GIB, 3),
                "does": one.why,
                "costs": one.costs,
            }

    # ----------------------------------------------------------------------- sentences

    def ways(self) -> Iterator[str]:
        """The same as lines: key, value, place, what is then needed, what it costs."""
        for one in self.document["ways"]:
            said = self._said(one["change"])
            if len(said) > FEW:
                said = [*said[:FEW], f"{len(said) - FEW} more"]
            places = dict.fromkeys(one["at"].values())
            what = f"{', '.join(said)} ({'; '.join(places)})" if said else f"by hand: {one['does']}"
            yield f"{what}: {_short(one['need_gib'])} GiB; {one['costs']}"

    def not_known(self) -> Iterator[str]:
        """What the code does not say literally, with what it counts as; one line for a reason."""
        lines: dict[str, list[str]] = {}
        for one in self.document["unknown"]:
            key, place = one["key"], self.file.at(one["key"]).removeprefix(f"{self.file.name}:")
            if key in self.file.about.no_effect:
                continue
            place = f"line {place}" if place.isdigit() else place.strip()
            said = [place] if place != self.file.name else []
            if key in self.file.left_open() and self.file.defaults.get(key) is not None:
                said.append(f"counted as {yaml_value(self.file.defaults[key])}")
            lines.setdefault(one["why"], []).append(f"{key} ({', '.join(said)})" if said else key)
        yield from (f"{', '.join(keys)}: {why}" for why, keys in lines.items())

    def _summary(self) -> str:
        """Whether it fits, the smallest change that does, and that there is more to read."""
        fit, change, hardware = self.fit, self.change, self.hardware
        if fit is None or fit.document.get("peak_gib") is None:
            reason = (
                "; ".join(self.why)
                if fit is None
                else str(fit.document.get("reason", "no estimate"))
            )
            return f"Whether it fits is not known: {reason or 'the model is not known'}"
        document = fit.document
        need, limit = f"{_short(document['need_gib'])} GiB", document.get("limit_gib")
        if limit is None:
            return (
                f"It needs about {need}; whether it fits is not known, because this machine has no"
                " GPU and none is named (--gpu)"
            )
        device, gpus = "this machine", hardware.gpus
        if gpus:
            named = (gpus[0].spec or gpus[0]).name
            if named.startswith("a ") or not named[:1].isalpha():  # its memory alone was stated
                device = "the GPU" if len(gpus) == 1 else f"each of {len(gpus)} GPUs"
            else:
                device = f"the {named}" if len(gpus) == 1 else f"each of {len(gpus)} x {named}"
        has, but = f"{device} has {_short(limit)}", ""
        if fit.fits == "unknown" and self.between:
            (least, low), (largest, high) = self.between
            ends = ["the values that need least", "those that need most"]
            if len(least) <= FEW:
                ends = [
                    ", ".join(f"{key}: {yaml_value(value)}" for key, value in end.items())
                    for end in (least, largest)
                ]
            return (
                f"Whether it fits depends on what is not known: with {ends[0]} it needs about"
                f" {_short(low / GIB)} GiB, with {ends[1]} {_short(high / GIB)}; {has}"
            )
        if refused := [one.text for one in self.findings if one.refused]:
            but = f"; but {self.file.about.name} refuses this file: {refused[0]}"
        elif wrong := sum(one.severity != "note" for one in self.findings):
            but = f"; but {wrong} thing{' is' if wrong == 1 else 's are'} wrong with it (below)"
        if fit.fits in ("fits", "tight"):
            tightly = ", with little to spare" if fit.fits == "tight" else ""
            return f"Fits: it needs about {need}, {has}{tightly}{but}"
        if fit.should_fit:
            safe = f". To be safe: {self._change(fit)}" if change else ""
            most = f"{_short(document['need_high_gib'])} at most, which would not fit"
            return f"Should fit: it needs about {need}, {has}; {most}{but}{safe}"
        does = "May not fit" if fit.fits == "may_fit" else "Does not fit"
        if fit.changed is not None and change:
            surely = "fits" if fit.changed["fits"] == "fits" else "should fit"
            way_out = f"Smallest change that {surely}: {self._change(fit)}"
        else:
            cards = f" The cheapest GPUs that hold it: {', '.join(fit.cards)}." if fit.cards else ""
            if fit.changed_card:
                cards = f" With changes it fits on one {fit.changed_card} (--gpu)."
            still = ""
            if fit.least_bytes:
                still = f": with all of them it still needs {format_gib(fit.least_bytes)}"
            way_out = f"No change of its keys makes it fit{still}.{cards}"
        return f"{does}: it needs about {need}, {has}. {way_out}"

    def _said(self, change: Mapping[str, Any]) -> list[str]:
        """'key: value' of each, as the file says it."""
        name, value = self.file.shown_key, self.file.shown_value
        return [f"{name(key)}: {value(key, one)}" for key, one in change.items()]

    def _change(self, fit: Fitting) -> str:
        """The change that fits: its keys, or what it does if they are many; what it then needs."""
        assert fit.change is not None
        assert fit.changed is not None
        said = ", ".join(self._said(self.change))
        if len(self.change) > SHOWN_CHANGES:
            does = joined(fit.change.why.split("; "))
            said = f"one that {does} ({len(self.change)} keys, below)"
        after = fit.changed
        most = "" if after["fits"] == "fits" else f", at most {_short(after['need_high_gib'])}"
        return f"{said} (then {_short(after['need_gib'])} GiB{most})"

    def _what(self) -> Iterator[str]:
        file, carried, ours = self.file, self.carried, self.reading.ours
        name = shlex.quote(file.name)
        started = file.about.start.format(command=file.command.name, file=name)
        yield f"{file.about.title} (`{f'sh {name}' if file.is_command_line else started}`):"
        if carried is None:
            yield "  a plan cannot express what it trains: see below"
            return
        plan = carried.plan
        stage, processes = plan.stages[0], plan.launch.world_size
        objective, update = methods().objective(stage.objective), methods().update(stage.update)
        rank = f", rank {ours['rank']}" if "rank" in ours else ""
        yield f"  {objective.name}: {objective.about}"
        yield f"  {update.name}{rank}{QUANTIZED.get(stage.quantization or '', '')}: {update.about}"
        yield f"  model {plan.model}; data {', '.join(self.data.words) or 'not named'}"
        over = f" x {processes} GPUs" if processes > 1 else ""
        each = "sequence" if stage.packing else "row"
        epochs = f"{stage.epochs:g} epoch{'' if stage.epochs == 1 else 's'}"
        yield (
            f"  {epochs if stage.max_steps is None else f'{stage.max_steps:,} steps'}, batch"
            f" {stage.micro_batch_size} x accumulation {stage.grad_accum}{over} ="
            f" {stage.effective_batch_size * processes} {each}s a step, learning rate"
            f" {stage.learning_rate:g}, {stage.scheduler}; up to {stage.seq_len:,} tokens a {each}"
            f"{', several rows packed into each' if stage.packing else ''}"
        )

    def _takes(self, fit: Fitting) -> Iterator[str]:
        document = fit.document
        if document.get("peak_gib") is None:
            return
        terms = sorted(document["terms"], key=lambda one: -one["gib"])[:SHOWN_TERMS]
        parts = ", ".join(f"{one['name']} {_short(one['gib'])}" for one in terms)
        band = f"between {_short(document['need_low_gib'])} and {_short(document['need_high_gib'])}"
        a_gpu = " a GPU" if len(self.hardware.gpus) > 1 else ""
        yield f"Memory: about {_short(document['need_gib'])} GiB{a_gpu} ({band}); largest: {parts}"
        if (seconds := document.get("step_s")) is not None:
            speed = f"{seconds:.2g} s" if seconds < 100 else format_duration(seconds)
            if document.get("hours") is None:
                missing = "the total is not known: the data set is not on this machine"
                yield f"Time: {speed} a step; {missing}"
            else:
                whole = _about(format_duration(document["hours"] * 3600))
                rows = (
                    "" if self.profile is None else f" for {format_count(self.profile.rows)} rows"
                )
                yield f"Time: {whole}{rows} ({speed} a step)"
        if fit.cost_usd is not None:
            yield f"Cost: {_about(format_usd(fit.cost_usd))}: {fit.price}"


def _reading(
    file: ToolFile, data: MeasuredData, instead: Mapping[str, Any] | None = None
) -> ReadKeys:
    values = {**file.meant, **(instead or {}), COMMAND: file.command.name, DATA_KIND: data.kind}
    context = Context(
        folder=file.path.parent, rows=None if data.profile is None else data.profile.rows
    )
    found = read(file.about, values, defaults=file.defaults, context=context)
    if data.holds_out and (holdout := found.carried.get("holdout")) and not holdout.value:
        # It takes no rows away since it measures on others, which a plan cannot: ours are taken.
        del found.carried["holdout"]
    found.lost += data.lost
    return found


def _short(amount: float) -> str:
    """Three digits, or all of a whole number that has more."""
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"


def _about(amount: str) -> str:
    return amount if amount.startswith("under") else f"about {amount}"
