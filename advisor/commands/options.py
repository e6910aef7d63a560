"""The options that several commands share; those for answers are made from rules/facts.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
from msgspec import Struct

from advisor.methods import methods, remedies, schemes
from advisor.ruleset.facts import Fact, load_facts

Command = TypeVar("Command", bound=Callable[..., Any])
FACT = "fact_"  # before the id of a fact: the name of its option's parameter


def answer_options(command: Command) -> Command:
    """Add an option for each fact with a flag (the wizard's questions), `--signal`, `--answers`."""
    for fact in reversed(list(load_facts().values())):
        if fact.flag is not None:
            command = click.option(
                fact.flag, f"{FACT}{fact.id}", multiple=True, **_fact_option(fact)
            )(command)
    command = click.option(
        "--signal",
        f"{FACT}signals",
        multiple=True,
        metavar="NAME",
        help="State a fact, or deny it with NAME=no; repeatable. `advise rules facts` lists them.",
    )(command)
    return click.option(
        "--answers",
        "answers_file",
        metavar="FILE",
        type=click.Path(),
        help="YAML or JSON file with answers, `-` for standard input; flags override it.",
    )(command)


class AdviceOptions(Struct, frozen=True, kw_only=True):
    """What a command that gives advice was called with."""

    flags: Mapping[str, tuple[Any, ...]]  # fact id -> the values that its option was given
    answers_file: str | None
    rule_layers: tuple[str, ...]
    choose: str | None
    force: bool
    as_json: bool
    plan_file: str | None = None
    why: bool = False
    brief: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> AdviceOptions:
        """The options among a command's parameters, by their names."""
        flags = {
            name.removeprefix(FACT): value
            for name, value in options.items()
            if name.startswith(FACT)
        }
        others = {name: options[name] for name in cls.__struct_fields__ if name in options}
        return cls(flags=flags, **others)

    @property
    def states_answers(self) -> bool:
        """Whether a file or a flag states anything."""
        return self.answers_file is not None or any(self.flags.values())


def completed(names: Callable[[], Iterable[str]]) -> Callable[[Any, Any, str], list[str]]:
    """What Tab makes of a word that is begun; in `sft>dpo+lora` of its last part."""

    def complete(_context: Any, _parameter: Any, begun: str) -> list[str]:
        last = begun.replace(">", "+").rpartition("+")[2]
        before = begun.removesuffix(last)
        return [f"{before}{name}" for name in names() if name.startswith(last)]

    return complete


METAVARS = {  # of a fact, else of its type
    "budget": "LEVEL|LIMITS", "gpu": "NAME", "tasks": "NAME=FILE", "data_mapping": "ROLE=COLUMN",
    "choice": "VALUE", "number": "N", "path": "PATH",
}  # fmt: skip


def _fact_option(fact: Fact) -> dict[str, Any]:
    name = fact.name[:1].upper() + fact.name[1:]
    help_ = fact.ask or (f"{name}." if name else "")
    if fact.id == "budget":
        help_ += " low, medium, high, or limits: '$20, 6 h', usd=20,hours=6."
    elif fact.id == "gpu":
        help_ += " A name, `unknown` or `none`; default: this machine."
    elif fact.type == "choice":
        help_ += f" One of: {', '.join(fact.values)}."
    elif fact.unit and fact.unit not in help_:
        help_ += f" ({fact.unit})"
    metavar = METAVARS.get(fact.id) or METAVARS.get(fact.type, "TEXT")
    options: dict[str, Any] = {"help": help_, "metavar": metavar}
    if fact.type == "path":
        options["type"] = click.Path()  # what Tab completes
    elif fact.type == "choice":
        options["shell_complete"] = completed(lambda: fact.values)
    return options


class Sections(click.Command):
    """A command that shows what it is asked, how it runs, and the rest apart in its help."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Answers": [], "Run": [], "Options": []}
        for option in self.get_params(context):
            record, name = option.get_help_record(context), str(option.name)
            is_answer = name.startswith(FACT) or name == "answers_file"
            if record is not None and isinstance(option, click.Option):
                title = "Answers" if is_answer else "Run" if name in RUN_OPTIONS else "Options"
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


choose_option = click.option(
    "--choose",
    metavar="COMPOSITION",
    help="Take this candidate instead: sft>dpo+lora, or a part of it: dpo, qlora.",
    shell_complete=completed(lambda: [*methods().objectives, *schemes(), *remedies()]),
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output."
)
# For commands that decide.
rule_options = click.option(
    "--rules",
    "rule_layers",
    multiple=True,
    metavar="PATH|document",
    type=click.Path(),
    help="`document`: the guide alone. A file: your own rules on top; repeatable (or set"
    " ADVISE_RULES).",
)
RUN_OPTIONS = {  # parameter -> its option
    "output": click.option(
        "--output",
        metavar="DIR",
        type=click.Path(),
        help="Run folder; default: ./runs/<name>-<digest>.",
    ),
    "dry_run": click.option(
        "--dry-run",
        is_flag=True,
        help="Measure two steps on the longest rows and one evaluation batch, then stop.",
    ),
    "only": click.option("--only", metavar="NAME", help="Train only this stage or task."),
    "set_values": click.option(
        "--set",
        "set_values",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a value of the plan: --set stages.0.learning_rate=1e-4; repeatable.",
    ),
    "max_steps": click.option(
        "--max-steps",
        type=click.IntRange(min=1),
        metavar="N",
        help="Stop every stage after N steps, for a trial.",
    ),
    "no_judge": click.option(
        "--no-judge",
        is_flag=True,
        help="Train, save and check that the result loads, but do not judge it by its base.",
    ),
}


def run_options(command: Command) -> Command:
    """Add what `advise run` and `advise demo` can change about a run."""
    for option in reversed(RUN_OPTIONS.values()):
        command = option(command)
    return command
