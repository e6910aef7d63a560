"""Random situations: what a person may state, with data files and models that are known offline."""

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from advisor.advice import advise as advising
from advisor.advice.facts import situation_facts
from advisor.advice.search.fit import fit_stage
from advisor.advice.search.settings import StageCase
from advisor.advice.types import ALONE, ON_EACH, Advice, FittedStage
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet, Hardware
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from advisor.situation.types import Situation

RULES, GUIDE = load_rules(), load_rules(("document",))
UNKNOWN_MACHINE = Hardware(kind="unknown", origin="unknown")
MODELS = (
    "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-30B-A3B", "HuggingFaceTB/SmolLM2-135M-Instruct",
)  # fmt: skip
GPUS = ("unknown", "RTX 4090", "RTX 3090", "A100 80GB", "T4", "RTX 4060 8GB", "none")
ROWS = (20, 300, 1500, 30_000, 200_000)
TOKENS = (50_000, 1_500_000, 30_000_000)
FILES = {  # name -> one row, of every kind that a stage learns from
    "paired.jsonl": {"prompt": "Where is parcel {i}?", "completion": "It is on its way, number {i}."},
    "preference.jsonl": {"prompt": "Question {i}?", "chosen": "Good {i}.", "rejected": "Bad {i}."},
    "feedback.jsonl": {"prompt": "Question {i}?", "completion": "Answer {i}.", "label": True},
    "problems.jsonl": {"prompt": "What is {i} plus {i}?", "answer": "{i}"},
}  # fmt: skip


def write_data(folder: Path) -> None:
    """A file of each kind with 1,200 rows, and one of plain text."""
    for name, row in FILES.items():
        with (folder / name).open("w") as file:
            for i in range(1200):
                label = {"label": bool(i % 2)} if "label" in row else {}
                filled = {key: str(value).format(i=i) for key, value in row.items()}
                file.write(json.dumps(filled | label) + "\n")
    text = "\n\n".join(
        f"A paragraph about matter {i}, {'and more of it ' * 30}" for i in range(200)
    )
    (folder / "text.txt").write_text(text)


def drawn(rng: random.Random, *rows: Any) -> dict[str, Any]:
    """Of rows (share, fact, its values, if not all) what somebody states who states that share."""
    facts = load_facts()
    return {
        name: rng.choice(list(*values or [facts[name].values]))
        for share, name, *values in rows
        if rng.random() < share
    }


def random_answers(seed: int, data: Path | None = None, *, runnable: bool = False) -> AnswerSet:
    """What somebody states, often with one of `data`'s files; `runnable`: with model and file."""
    rng, facts = random.Random(seed), load_facts()
    known: dict[str, Any] = {"task": rng.choice(list(facts["task"].values))}
    known |= drawn(rng, (0.5, "budget"))
    if "budget" not in known:
        known |= drawn(rng, (0.4, "budget_usd", (5, 20)))
    known |= drawn(
        rng, (0.4, "depth"), (0.3, "serve_with"), (0.3, "priority"), (0.15, "n_tasks", (2, 5, 12)),
        (1 if runnable else 0.7, "model", MODELS),
    )  # fmt: skip
    known["gpu"] = rng.choice(GPUS)
    if known["gpu"] not in ("unknown", "none"):
        known |= drawn(rng, (0.3, "gpus", (2, 3, 8)))
    if data is not None and (runnable or rng.random() < 0.6):
        known["data_path"] = str(data / rng.choice([*FILES, "text.txt"]))
    else:
        amounts = (0.6, "data_rows", ROWS), (0.4, "data_tokens", TOKENS)
        known |= drawn(rng, (0.7, "data_kind"), *amounts)
    signals = [fact.id for fact in facts.values() if fact.signal]
    said = rng.sample(signals, rng.choice((0, 0, 1, 1, 2)))
    denied = rng.sample(signals, rng.choice((0, 0, 0, 1)))
    known |= {name: False for name in denied if name not in said}
    if said:
        known["signals"] = tuple(said)
    return stated(rng.choice(("flag", "file", "asked")), **known)


def stated(origin: Any = "flag", /, **known: Any) -> AnswerSet:
    """These answers, given as flags or from elsewhere."""
    return AnswerSet(
        known={name: Answer(value=value, origin=origin) for name, value in known.items()}
    )


def asked(**known: Any) -> Situation:
    """The situation of these answers, on a machine of which nothing is known."""
    return situation_of(stated(**known), probed=UNKNOWN_MACHINE)


def advice_on(situation: Situation, *, flips: bool = False) -> Advice:
    """The shipped rules' advice; what would change it takes more time than all the rest."""
    with nullcontext() if flips else patch.object(advising, "find_flips", lambda *_: ()):
        return advising.advise(situation, RULES, GUIDE)


def advised(**known: Any) -> Advice:
    """The advice on these answers; raises InputError where they contradict each other."""
    return advice_on(asked(**known))


def fitted(composition: str, situation: Situation) -> FittedStage:
    """The last stage of a composition as it fits, with a copy on each GPU where there are several."""
    found = parse_composition(composition)
    strategy = ON_EACH if len(situation.hardware.gpus) > 1 else ALONE
    axes = (situation, situation_facts(situation), found, found.chain[-1])
    return fit_stage(StageCase(RULES, *axes, strategy=strategy))


@cache
def random_advice(
    seed: int, data: Path | None, *, runnable: bool = False, flips: bool = True
) -> Advice | None:
    """The advice on random_answers, computed once a process; None if they contradict themselves."""
    try:
        answers = random_answers(seed, data, runnable=runnable)
        return advice_on(situation_of(answers, probed=UNKNOWN_MACHINE), flips=flips)
    except InputError:
        return None


def random_advices(
    seeds: Iterable[int], data: Path | None, **how: bool
) -> Iterator[tuple[int, Advice]]:
    """Each seed with its random advice, where what was stated does not contradict itself."""
    for seed in seeds:
        if (advice := random_advice(seed, data, **how)) is not None:
            yield seed, advice
