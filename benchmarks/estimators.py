"""Published peaks: `advise estimate` beside other calculators of training memory, each in an
environment of its own.

Each calculator (benchmarks/calculators/) is a child process of the Python in a folder of its name:

    for each NAME: python -m venv FOLDER/NAME && FOLDER/NAME/bin/pip install PACKAGE
    ESTIMATORS=FOLDER python -m benchmarks estimators           # print
    ESTIMATORS=FOLDER python -m benchmarks estimators --write   # and write for docs/estimates.md

Without the variable it prints the lines that install them all; one without its folder is left out,
and the output says so. `--write` replaces the marked lines of tests/data_cases/memory.yaml; `python
-m tools.generate` then writes the page again.

Models are given by their dimensions (advisor/situation/models.py), not by the hub, so that all see
the same model and none needs a network. What none of them can be told: the counter behind a
measured peak, the framework, the loss kernel, packing and padding. So each calculator is scored
twice: as printed, and with its own line for CUDA context and fragmentation left out where the
counter leaves these out as well.

Looked at and not asked: hf-mem, llm-mem-planner, modelinfo-cli, vramcalc and vramscout say what
serving a model takes; torch-kitsune and vram-check take a live PyTorch model; cfit multiplies the
parameters by their bytes.
"""

import datetime
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.situation.models import model_shape
from benchmarks.calculators import Calculator, calculators
from benchmarks.calculators.job import Job, job_of, shared
from benchmarks.measuring import Row, table
from benchmarks.refit import in_and_out_of_sample, replace_marked, rounded
from tools.generate.accuracy import CASES, Case, published, summary

TITLE = (
    "memory on published cases, advise estimate beside other calculators on the same cases; each"
    " source counts once"
)
VARIABLE = "ESTIMATORS"
WITHOUT_CONTEXT = ("allocated", "active")  # counters of tensors alone: no CUDA context, no cache

Answer = (
    tuple[float, float] | str
)  # GiB, and how much of it is context and fragmentation; or why there is none
Told = tuple[dict[str, Any], Job | str]  # a case with all its keys, and its job or why it has none


@dataclass(frozen=True)
class Side:
    """A calculator that ran: its version and its answers as cases, by case."""

    calculator: Calculator
    version: str
    printed: dict[str, Case]
    tensors: dict[str, Case]  # without context and fragmentation where the counter has none

    @property
    def title(self) -> str:
        return f"{self.calculator.package} {self.version}"

    @property
    def sides(self) -> dict[str, dict[str, Case]]:
        alone = {self.title: self.printed}
        both = alone | {f"{self.title}, no context": self.tensors}
        return both if self.calculator.has_context else alone


def jobs() -> list[Told]:
    """Every published case with all its keys, and its job."""
    data = published()
    found: list[Told] = []
    for row in data["cases"]:
        case = {**data["defaults"], **row}
        shape, _ = model_shape(case["model"], params_b=case.get("model_params_b"))
        found.append((case, "model not known" if shape is None else job_of(case, shape)))
    return found


def asked(
    calculator: Calculator, python: str, told: Sequence[Told]
) -> tuple[str, dict[str, Answer]]:
    """Its version, and its answer by case. Raises RuntimeError where the child fails."""
    arguments = {
        case["id"]: job if isinstance(job, str) else calculator.arguments(job) for case, job in told
    }
    items = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    child = subprocess.run(
        [python, "-c", calculator.script],
        input=json.dumps(list(items.values())),
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(
            f"{calculator.package} ended with {child.returncode}: {child.stderr[-2000:]}"
        )
    said = json.loads(child.stdout.splitlines()[-1])
    answers = dict(zip(items, said["answers"], strict=True))
    found: dict[str, Answer] = {}
    for name, value in arguments.items():
        answer = value if isinstance(value, str) else answers[name]
        found[name] = answer if isinstance(answer, str) else (answer[0], answer[1])
    return said["version"], found


def as_cases(
    answers: Mapping[str, Answer], told: Sequence[Told], *, context: bool
) -> dict[str, Case]:
    """Their answers as cases; without context and fragmentation where the counter leaves these out,
    unless `context`.
    """
    found = {}
    for case, _ in told:
        answer = answers[case["id"]]
        if not isinstance(answer, str):
            left_out = 0.0 if context or case["counter"] not in WITHOUT_CONTEXT else answer[1]
            found[case["id"]] = Case(case, {"peak_gib": answer[0] - left_out})
    return found


def compared(
    subset: str, names: Sequence[str], sides: Mapping[str, Mapping[str, Case]]
) -> list[Row]:
    """Rows of all sides on the same cases, ours first; the unit names the subset, so that the ratio
    column compares within it.
    """
    if not names:
        return []
    rows = []
    for title, cases in sides.items():
        found = summary([cases[name] for name in names])
        rows += [
            Row(f"{title}: median error", (found["median_error"] * 100,), f"% err {subset}"),
            Row(f"{title}: within 20 %", (found["within_20"] * 100,), f"% near {subset}", True),
            Row(f"{title}: 10 % too low", (found["too_low"] * 100,), f"% low {subset}"),
        ]
    return [*rows, Row(f"cases: {subset}", (float(len(names)),), f"cases {subset}")]


def how_to_install(one: Calculator) -> str:
    return f"python -m venv FOLDER/{one.name} && FOLDER/{one.name}/bin/pip install {one.package}"


def ask_all(told: Sequence[Told]) -> list[Side]:
    """Every calculator that has an environment; prints those that have none."""
    folder = os.environ.get(VARIABLE)
    found = []
    for one in calculators():
        python = Path(folder, one.name, "bin", "python") if folder else None
        if python is None or not python.exists():
            print(f"{one.package}: left out; {how_to_install(one)}; {VARIABLE}=FOLDER")
            continue
        version, answers = asked(one, str(python), told)
        side = Side(
            one, version, as_cases(answers, told, context=True),
            as_cases(answers, told, context=False),
        )  # fmt: skip
        found.append(side)
        print(f"{side.title}: answers {len(side.printed)} of {len(told)}; {one.note}")
    return found


def shared_names(sides: Sequence[Side], told: Sequence[Told]) -> list[str]:
    """Plain runs that every calculator which knows adapters and full fine-tuning answers."""
    every = [side.printed for side in sides if side.calculator.has_adapters]
    most = [printed for printed in every if _answers_both(printed)]
    return [
        case["id"]
        for case, _ in told
        if shared(case) and most and all(case["id"] in printed for printed in most)
    ]


def _answers_both(printed: Mapping[str, Case]) -> bool:
    """Whether it answers full fine-tuning as well as adapters."""
    methods = {case.facts["update"] == "full" for case in printed.values()}
    return methods == {True, False}


def subsets(sides: Sequence[Side], told: Sequence[Told]) -> list[tuple[str, Side, list[str]]]:
    """(which subset, calculator, names of its cases): all that it answers, and of the shared ones
    those that it answers.
    """
    plain = shared_names(sides, told)
    return [("answered", side, list(side.printed)) for side in sides] + [
        ("shared", side, [name for name in plain if name in side.printed]) for side in sides
    ]


def record(
    sides: Sequence[Side], told: Sequence[Told], ours: Mapping[str, Case], *, measured: str
) -> list[str]:
    """The lines of tests/data_cases/memory.yaml on other calculators."""
    lines = ["other_calculators:", f"  measured: {json.dumps(measured)}", "  rows:"]
    for subset, side, names in subsets(sides, told):
        if not names:
            continue
        row: dict[str, Any] = {"name": side.title, "cases": subset, "answered": len(names)}
        row["printed"] = rounded(summary([side.printed[name] for name in names]))
        row["ours"] = rounded(summary([ours[name] for name in names]))
        if side.calculator.has_context:
            row["tensors"] = rounded(summary([side.tensors[name] for name in names]))
        lines.append(f"    - {json.dumps(row)}")
    lines.append("  notes:")
    return [
        *lines,
        *(f"    {side.calculator.package}: {json.dumps(side.calculator.note)}" for side in sides),
    ]


def measure() -> list[Row]:
    """Rows to print; nothing where no calculator has an environment."""
    return _measured(write=False)


def main(arguments: Sequence[str]) -> int:
    """`python -m benchmarks estimators --write`."""
    if list(arguments) != ["--write"]:
        print("usage: python -m benchmarks estimators [--write]")
        return 2
    rows = _measured(write=True)
    if not rows:
        print("nothing written: no calculator ran")
        return 4
    print(table(rows))
    print(f"\nwritten: {CASES}; now run `python -m tools.generate`")
    return 0


def _measured(*, write: bool) -> list[Row]:
    told = jobs()
    sides = ask_all(told)
    if not sides:
        return []
    print(
        "shared: one GPU, bf16, AdamW, plain loss, answered by all that know adapters and full"
        " fine-tuning. No context: their line for CUDA context and fragmentation"
    )
    print(
        f"left out for peaks counted as {' or '.join(WITHOUT_CONTEXT)}. Refitted: our constants"
        " fitted without the case's source.\n"
    )
    ours = {
        title: {case.facts["id"]: case for case in found}
        for title, found in zip(("ours", "ours, refitted"), in_and_out_of_sample(), strict=True)
    }
    if write:
        today = datetime.date.today().isoformat()
        replace_marked(
            CASES, "other calculators", record(sides, told, ours["ours, refitted"], measured=today)
        )
    return [
        row
        for subset, side, names in subsets(sides, told)
        for row in compared(f"{side.calculator.name} {subset}", names, {**ours, **side.sides})
    ]
