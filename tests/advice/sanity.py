"""What every answer has to keep to, whatever is stated: laws over random situations.

    python -m tests.advice.sanity [NUMBER] [SEED]

prints each law that some situation breaks, with the answers that show it.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from advisor.advice.advise import open_case, recommended_candidate
from advisor.advice.case import Decision
from advisor.advice.flips import find_flips
from advisor.advice.search.part_of_data import PLANNED
from advisor.advice.types import LADDER
from advisor.ground.errors import InputError
from advisor.ground.types import Hardware
from advisor.methods import schemes
from advisor.ruleset.facts import load_facts
from advisor.ruleset.judge import conditions_on
from advisor.ruleset.space import cuts_of
from advisor.situation.build import situation_of
from advisor.situation.types import Situation
from tests.advice.situations import RULES, UNKNOWN_MACHINE, drawn, stated

CPU = Hardware(
    kind="cpu", origin="probed", cpu_cores=8, cpu_bf16=True, ram_total_bytes=32 * 2**30,
    ram_free_bytes=20 * 2**30,
)  # fmt: skip
MODELS = (
    "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B", "mistralai/Mistral-7B-v0.3",
    "HuggingFaceTB/SmolLM2-135M-Instruct", "google-bert/bert-base-uncased",
    "FacebookAI/xlm-roberta-large",
)  # fmt: skip
GPUS = (
    "T4", "RTX 3060 12GB", "RTX 4060 8GB", "RTX 4090", "RTX 5090", "A10", "L4", "L40S",
    "A100 40GB", "A100 80GB", "H100", "H200", "B200", "MI300X", "RTX 3090",
)  # fmt: skip
UPWARDS = ("qlora", "lora", "full")  # from the least to the most that is learned
# Signals whose denial says as much as they do: a model follows instructions, or it does not yet.
TWO_SIDED = ("instruct_model_start", "base_model_untuned")
DOLLARS, HOURS = (0.5, 2, 5, 20, 100, 1000), (0.5, 2, 8, 48)


def random_known(rng: random.Random) -> dict[str, Any]:
    """What somebody states of a situation: fact -> value."""
    facts = load_facts()
    known: dict[str, Any] = {"task": rng.choice(list(facts["task"].values))}
    known |= drawn(rng, (0.45, "budget"))
    if "budget" not in known:
        known |= drawn(rng, (0.3, "budget_usd", DOLLARS), (0.2, "budget_hours", HOURS))
    known |= drawn(
        rng, (0.4, "depth"), (0.25, "serve_with"), (0.25, "priority"),
        (0.15, "n_tasks", (2, 5, 12)), (0.15, "teacher"), (0.55, "model", MODELS),
        (0.85, "gpu", (*GPUS, "none", "unknown")),
    )  # fmt: skip
    if known.get("gpu") in GPUS:
        known |= drawn(rng, (0.3, "gpus", (1, 2, 4, 8)))
    known |= drawn(rng, (0.85, "data_kind"))
    if known.get("data_kind", "none") != "none":
        if rng.random() < 0.8:
            known["data_rows"] = round(10 ** rng.uniform(0.5, 6.3))
        if rng.random() < 0.6:
            rows = known.get("data_rows") or round(10 ** rng.uniform(1, 5))
            known["data_tokens"] = rows * rng.choice((30, 150, 400, 2000))
    signals = [fact.id for fact in facts.values() if fact.signal]
    for name in rng.sample(signals, rng.choice((0, 0, 1, 1, 2, 3))):
        known[name] = rng.random() < 0.8
    return known


def situation_for(known: Mapping[str, Any], machine: Hardware = UNKNOWN_MACHINE) -> Situation:
    """The situation of these answers; `gpu: none` is a machine of eight cores and 32 GiB."""
    unnamed = known.get("gpu") in ("none", "unknown")
    named = {name: value for name, value in known.items() if name != "gpu" or not unnamed}
    return situation_of(stated(**named), probed=CPU if known.get("gpu") == "none" else machine)


class Answered:
    """A situation with what is decided."""

    def __init__(self, known: Mapping[str, Any], situation: Situation | None = None) -> None:
        self.known = known
        case = open_case(situation or situation_for(known), RULES)
        self.decision: Decision = case.decision
        self.case = replace(case, concessions=self.decision.concessions)
        self.composition = str(self.decision.composition)
        one = self.case.situation
        self.machine = one.hardware
        self.suggested_params = one.suggestion and one.model and one.model.params

    def changed(self, **changes: Any) -> Any:
        """The same with other answers (None takes one away), or None where that is refused."""
        known = {**self.known, **changes}
        try:
            return Answered({name: one for name, one in known.items() if one is not None})
        except InputError:
            return None


def is_lower(after: Answered, before: Answered) -> bool:
    """Whether the second answer asks for less: nothing fits any more, or a lower scheme."""
    one, other = before.decision.composition, after.decision.composition
    if (
        "smaller_model" in other.remedies
    ):  # of another chain, which more money buys, it says nothing
        return before.decision.trains and before.decision.chain == after.decision.chain
    same = (one.chain, one.encoder, one.per_task) == (other.chain, other.encoder, other.per_task)
    if not same or one.scheme not in UPWARDS or other.scheme not in UPWARDS:
        return False
    is_split = before.decision.facts[f"fits_{one.scheme}"] == "split"  # 4 bit is faster
    return not is_split and UPWARDS.index(other.scheme) < UPWARDS.index(one.scheme)


def more_never_hurts(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """More memory, GPUs, money, hours or rows lead to no lower scheme, and not to nothing fits.

    Of models that nobody named a larger one may have a lower scheme, and one with a higher scheme
    may be smaller. Within a limit more rows or (dearer) GPUs, or a higher one, may lead to what
    learns all rows in a cheaper way, and a higher limit from every weight to the preferred LoRA.
    The longest of more rows is longer, which takes memory; a model that learns from part of the data,
    or in part of its modules, may be larger than one that learns from all of them.
    """
    known = answer.known
    more: dict[str, dict[str, Any]] = {}
    gpu = answer.case.situation.hardware.gpus
    if gpu and gpu[0].memory_total_bytes and known.get("gpu") in GPUS:
        size = gpu[0].memory_total_bytes / 2**30
        more["memory"] = {"gpu_memory_gib": round(size * rng.choice((1.3, 2, 4)))}
        more["GPUs"] = {"gpus": known.get("gpus", 1) * rng.choice((2, 4))}
    if "budget" in known:
        words = ("low", "medium", "high")
        if higher := words[words.index(known["budget"]) + 1 :]:
            more["money in words"] = {"budget": rng.choice(higher)}
    for what, limit in (("dollars", "budget_usd"), ("hours", "budget_hours")):
        if limit in known:
            more[what] = {limit: rng.choice((known[limit] * 3, None))}
    if known.get("data_rows"):
        factor = rng.choice((1.5, 4, 20))
        more["rows"] = {"data_rows": round(known["data_rows"] * factor)}
        if known.get("data_tokens"):
            more["rows"]["data_tokens"] = round(known["data_tokens"] * factor)
    for what, change in more.items():
        after, is_limit = answer.changed(**change), what in ("dollars", "hours")
        cheaper = what in ("rows", "GPUs") and {"budget_usd", "budget_hours"} & set(known)
        is_part = answer.decision.concessions.part and after and not after.decision.concessions.part
        preferred = is_limit and ("+full" in answer.composition or is_part)
        rents = is_limit and after and after.machine != answer.machine  # a limit rents a card
        if after is None or rents or ((cheaper or preferred) and not after.decision.nothing_fits):
            continue
        before, now = answer.suggested_params, after.suggested_params
        is_larger = before and now and now > before and not after.decision.nothing_fits
        facts = (answer.decision.facts, after.decision.facts)
        longest = what == "rows" and len({one["fits_lora"] for one in facts}) > 1
        excused = is_larger or (longest and not after.decision.nothing_fits)
        if is_lower(after, answer) and not excused:
            yield f"more {what}", f"{change}: {answer.composition} -> {after.composition}"
        all_of_it = not answer.decision.concessions.part and after.decision.trains
        larger = what == "memory" and known.get("data_rows") and all_of_it
        if larger and before and now and now < before and not is_lower(answer, after):
            yield "a smaller suggestion", f"{change}: {before:,} -> {now:,} parameters"


def what_is_assumed_may_be_said(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Stating one GPU, one task, the suggested model or a fact of it changes nothing."""
    known, situation = answer.known, answer.case.situation
    assumed: dict[str, dict[str, Any]] = {}
    if known.get("gpu") in GPUS and "gpus" not in known:
        assumed["one GPU"] = {"gpus": 1}
    if "n_tasks" not in known and known["task"] != "multi_department":
        assumed["one task"] = {"n_tasks": 1}
    hardware_known = situation.hardware.device_memory_bytes is not None  # with a limit: rented
    if situation.suggestion is not None and known.get("data_kind") and hardware_known:
        assumed["the suggested model"] = {"model": situation.suggestion.model}
    for what, change in assumed.items():
        after = answer.changed(**change)
        if after is None or after.composition != answer.composition:
            new = "refused" if after is None else after.composition
            yield f"stating {what}", f"{change}: {answer.composition} -> {new}"
        elif "model" in change:
            old, now = answer.decision.facts, after.decision.facts
            differ = {key for key in {*old, *now} - {"model"} if old.get(key) != now.get(key)}
            if differ:
                yield f"stating {what}", f"{change}: other {sorted(differ)}"


def one_row_more(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """One row more changes nothing, except at a threshold that some rule names."""
    rows = answer.known.get("data_rows")
    if not rows:
        return
    after = answer.changed(data_rows=rows + 1)
    if after is None or after.composition == answer.composition:
        return
    cuts = set(cuts_of(conditions_on(RULES, "data_rows")))
    if not cuts & {rows, rows + 1}:
        yield "one row more", f"{rows} rows: {answer.composition} -> {after.composition}"


def a_denial_is_no_statement(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Denying a signal leads nowhere that neither saying nothing nor a rule about the denial does."""
    said = {*answer.known, *TWO_SIDED}
    unstated = [fact for fact in load_facts().values() if fact.signal and fact.id not in said]
    if not unstated:
        return
    fact = rng.choice(unstated)
    denied = answer.changed(**{fact.id: False})
    if denied is None or denied.composition == answer.composition:
        return
    stated = answer.changed(**{fact.id: True})
    about = any(
        condition.fact in (fact.id, *fact.implies, *fact.implies_either_way)
        and condition.holds(condition.fact in fact.implies_either_way) != condition.holds(None)
        for rules in RULES.rules.values()
        for rule in rules
        for condition in rule.when
    )
    if not about or (stated is not None and stated.composition == denied.composition):
        yield "a denial", f"{fact.id}=no: {answer.composition} -> {denied.composition}"


def free_memory_does_not_count(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What other programs hold just now changes no answer."""
    situation = answer.case.situation
    machine = situation.hardware
    busy = replace(
        machine,
        ram_free_bytes=None if machine.ram_free_bytes is None else machine.ram_free_bytes // 8,
        gpus=tuple(replace(gpu, memory_free_bytes=2**30) for gpu in machine.gpus),
    )
    after = Answered(answer.known, replace(situation, hardware=busy))
    if after.composition != answer.composition:
        yield "free memory", f"{answer.composition} -> {after.composition}"
    elif answer.decision.trains:
        costs = [one.case.cost_of(one.decision.composition)[1] for one in (answer, after)]
        if costs[0] != costs[1]:
            yield "free memory", f"another estimate of {answer.composition}"


def ends_in_time(answer: Answered, one: Any) -> bool:
    """Whether each limit is enough for one step of every stage in the smallest batch."""
    least = replace(answer.decision.concessions, part="all", smallest_batch=True)
    stages, cost = answer.case.costs.cost_of(one, least)
    hours = sum(stage.cost.step_s or 0.0 for stage in stages) / PLANNED / 3600
    usd = 3600 * hours * (cost.cost_usd or 0.0) / (cost.duration_s or 1.0)
    limit = answer.known.get
    return bool(hours <= limit("budget_hours", hours) and usd <= limit("budget_usd", usd))


def limits_are_kept(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What is recommended fits every stated limit, by fewer rows rather than a smaller model."""
    usd, hours = answer.known.get("budget_usd"), answer.known.get("budget_hours")
    if usd is not None or hours is not None:
        free = answer.changed(budget_usd=None, budget_hours=None)
        same = free is not None and free.machine == answer.machine
        fits = same and free.decision.nothing_fits != answer.decision.nothing_fits
        if fits and (free.decision.nothing_fits or ends_in_time(answer, free.decision.composition)):
            yield "a limit", f"{free.composition} -> {answer.composition}"
    if not answer.decision.trains:
        return
    cost = recommended_candidate(answer.case, answer.decision).estimate
    need = cost.memory.need_bytes if cost.memory is not None else 0
    if cost.limit_bytes is not None and need > cost.limit_bytes and cost.fits != "may_fit":
        yield "too big", f"{answer.composition} needs {need / 2**30:.1f} GiB"
    suggestion = answer.case.situation.suggestion
    chosen = suggestion is not None and "not even this one" not in suggestion.because
    if chosen and not answer.decision.nothing_fits and answer.known.get("data_rows"):
        high = 0 if cost.memory is None else cost.memory.need_high_bytes
        if cost.limit_bytes is not None and high > cost.limit_bytes:
            yield "too large a suggestion", f"{suggestion.model} for {answer.composition}"
    if usd is not None and cost.cost_usd is not None and cost.cost_usd > usd * 1.001:
        yield "over budget", f"{answer.composition} costs {cost.cost_usd:.2f} of {usd}"
    if hours is not None and cost.duration_s is not None and cost.duration_s > hours * 3601:
        yield "too long", f"{answer.composition} takes {cost.duration_s / 3600:.2f} of {hours} h"


def flips_come_true(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """A change that is promised leads to the promised answer."""
    if rng.random() > 0.125:
        return
    facts = {fact.answer or fact.id: fact.id for fact in load_facts().values()} | {"gpu": "gpu"}
    for flip in find_flips(answer.case, answer.decision):
        change = {facts.get(name, name): value for name, value in flip.change.items()}
        if {"params_b", "checkpoint_kind"} & set(change):
            continue  # of a model, not of an answer
        if "gpu" in change:
            change |= {"gpus": None, "gpu_memory_gib": None}
        after = answer.changed(**change)
        if after is None or after.composition != str(flip.to):
            new = "refused" if after is None else after.composition
            yield "a flip", f"{flip.text} ({change}): promised {flip.to}, got {new}"


def nothing_fits_means_nothing(answer: Answered, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where a smaller model is advised, no scheme fits at the lowest settings, nor nearly."""
    if not answer.decision.nothing_fits:
        return
    for scheme in schemes():
        one = answer.decision.candidate(scheme)
        cost = answer.case.costs.cost_of(one, LADDER[-1])[1]
        fits = cost.fits not in ("too_big", "may_fit") or cost.is_near
        if fits and ends_in_time(answer, one):
            yield "a smaller model", f"while {one} fits"


LAWS = (
    more_never_hurts, what_is_assumed_may_be_said, one_row_more, a_denial_is_no_statement,
    free_memory_does_not_count, limits_are_kept, flips_come_true, nothing_fits_means_nothing,
)  # fmt: skip


def violations(seed: int) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(law, what happened, the answers) of each law that a random situation breaks."""
    rng = random.Random(seed)
    known = random_known(rng)
    try:
        answer = Answered(known)
    except InputError:  # answers that contradict each other
        return
    for law in LAWS:
        for what, how in law(answer, rng):
            yield what, how, known


def main() -> None:
    number, first = map(int, (*sys.argv[1:], *("500", "0")[len(sys.argv) - 1 :]))
    counted: Counter[str] = Counter()
    for seed in range(first, first + number):
        for what, how, known in violations(seed):
            counted[what] += 1
            if counted[what] <= 6:
                print(f"{seed} {what}: {how}\n    {json.dumps(known)}", flush=True)
    print(f"{number} situations: {dict(counted) or 'no law is broken'}")


if __name__ == "__main__":
    main()
