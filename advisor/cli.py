"""argv in, exit code out.

The only place that catches AdviseError; everything heavy is imported inside a command.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from advisor import __version__
from advisor.ground.errors import AdviseError, Fault, InputError, Stopped
from advisor.ground.files import PLAN_FILE, refused_by_system
from advisor.ruleset.facts import Fact, load_facts

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.advice.types import Advice, Candidate
    from advisor.ground.types import Answers
    from advisor.plan.model import Comments, Plan
    from advisor.ruleset.model import Ruleset

Command = TypeVar("Command", bound=Callable[..., Any])


# --------------------------------------------------------------------------- options made from the


def answer_options(command: Command) -> Command:
    """One option for each fact that has a flag, `--signal` and `--answers`: the same list as the
    wizard's questions.
    """
    for fact in reversed(list(load_facts().values())):
        if fact.flag is not None:
            command = click.option(fact.flag, f"fact_{fact.id}", multiple=True, **_option(fact))(
                command
            )
    command = click.option(
        "--signal",
        "fact_signals",
        multiple=True,
        metavar="NAME",
        help="A fact you state, or deny with NAME=no; repeatable, listed by `advise rules facts`.",
    )(command)
    return click.option(
        "--answers",
        "answers_file",
        metavar="FILE",
        help="YAML or JSON file with answers, `-` for standard input; flags win over it.",
    )(command)


def _option(fact: Fact) -> dict[str, Any]:
    help_ = fact.ask or f"In {fact.unit}." if fact.unit else fact.ask
    if fact.id == "budget":
        return {"help": f"{help_} low, medium, high, or usd=20,hours=6.", "metavar": "LEVEL|LIMITS"}
    if fact.id == "gpu":
        return {
            "help": f"{help_} A name, `unknown` or `none`; left out: this machine.",
            "metavar": "NAME",
        }
    if fact.type == "map":
        return {"help": help_, "metavar": "NAME=FILE" if fact.id == "tasks" else "ROLE=COLUMN"}
    if fact.type == "choice":
        return {"help": f"{help_} One of: {', '.join(fact.values)}.", "metavar": "VALUE"}
    if fact.type == "number":
        return {
            "help": f"{help_} ({fact.unit})" if fact.unit and fact.unit not in help_ else help_,
            "type": float,
            "metavar": "N",
        }
    return {"help": help_, "metavar": "PATH" if fact.type == "path" else "TEXT"}


def rule_options(command: Command) -> Command:
    """--rules, for commands that decide."""
    return click.option(
        "--rules", "rule_layers", multiple=True, metavar="PATH|document",
        help="`document`: the guide alone. A file: your own rules on top, repeatable (or ADVISE_RULES).",
    )(command)  # fmt: skip


def read_answers(
    answers_file: str | None, options: Mapping[str, Any], rule_layers: tuple[str, ...]
) -> tuple[Answers, list[str], Path | None]:
    """Answers of the file and the flags, merged, with warnings and the file's folder."""
    from advisor.ground.yaml_reader import parse_yaml, read_yaml
    from advisor.situation.answers import answers_from_document, answers_from_flags, merge_answers

    facts = load_known_facts(rule_layers)
    from_flags, warnings = answers_from_flags(
        _said_once(
            {
                key.removeprefix("fact_"): value
                for key, value in options.items()
                if key.startswith("fact_")
            },
            facts,
        ),
        facts,
    )
    if answers_file is None:
        return from_flags, list(warnings), None
    document = (
        parse_yaml(sys.stdin.buffer.read(), name="<stdin>")
        if answers_file == "-"
        else read_yaml(answers_file)
    )
    from_file, more = answers_from_document(document, facts)
    return (
        merge_answers(from_file, from_flags),
        [*more, *warnings],
        None if answers_file == "-" else Path(answers_file).parent,
    )


def _said_once(options: Mapping[str, tuple[Any, ...]], facts: Mapping[str, Fact]) -> dict[str, Any]:
    """Flag values by fact. What stands for several is a tuple; limits of the budget go together;
    any other flag has one value, however often it is given.
    """
    values: dict[str, Any] = {}
    faults = []
    for fact_id, given in options.items():
        several = tuple(dict.fromkeys(given))
        if fact_id == "signals" or facts[fact_id].type == "map":
            values[fact_id] = given
        elif fact_id == "budget" and all("=" in limit for limit in several):
            values[fact_id] = ",".join(several) or None
        elif len(several) > 1:
            faults.append(
                Fault(
                    what=(
                        f"{facts[fact_id].flag} is given {len(several)} times:"
                        f" {', '.join(map(str, several))}"
                    ),
                    allowed="one value",
                )
            )
        else:
            values[fact_id] = several[0] if several else None
    if faults:
        raise InputError(faults=faults)
    return values


def find_rule_layers(rule_layers: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """The shipped layers, and the files on top of them, that --rules or ADVISE_RULES name."""
    shipped = ("document", "evidence")
    wanted = rule_layers or tuple(
        filter(None, os.environ.get("ADVISE_RULES", "").split(os.pathsep))
    )
    return ("document",) if "document" in wanted else shipped, tuple(
        Path(path) for path in wanted if path not in shipped
    )


def load_known_facts(rule_layers: tuple[str, ...]) -> Mapping[str, Fact]:
    """Every fact that may be stated: those of the product, and what files of one's own add."""
    layers, overlays = find_rule_layers(rule_layers)
    if not overlays:
        return load_facts()
    from advisor.ruleset.load import load_rules

    return load_rules(layers, overlays).facts


def load_rule_set(rule_layers: tuple[str, ...]) -> tuple[Ruleset, Ruleset]:
    """The rules that decide, and the guide's rules alone.

    Files of one's own are proved first: what breaks the rules is refused.
    """
    from advisor.ruleset.load import load_rules, only_layer

    layers, overlays = find_rule_layers(rule_layers)
    ruleset = load_rules(layers, overlays)
    if overlays:
        from advisor.advice.linting import refuse_or_warn

        for warning in refuse_or_warn(ruleset, layers):
            click.echo(f"warning: {warning}", err=True)
    return ruleset, (
        only_layer(ruleset, "document") if not ruleset.disabled else load_rules(("document",))
    )


# --------------------------------------------------------------------------- advising


def advise_on(
    answers: Answers,
    warnings: list[str],
    rule_layers: tuple[str, ...],
    *,
    base: Path | None = None,
    online: bool = False,
    probed: Any = None,
) -> tuple[Advice, Ruleset]:
    """The advice on these answers. Raises InputError where the task is missing."""
    from dataclasses import replace

    from advisor.advice.advise import advise
    from advisor.situation.build import situation_of

    if answers.value("task") is None:
        tasks = ", ".join(load_facts()["task"].values)
        raise InputError(
            "the task is not stated",
            allowed=f"--task, or `task:` in the answers file: {tasks}",
            hint="without flags, `advise` asks the questions on a terminal",
        )
    ruleset, guide = load_rule_set(rule_layers)
    situation = situation_of(answers, probed=probed, online=online, base=base)
    situation = replace(situation, warnings=(*warnings, *situation.warnings))
    return advise(situation, ruleset, guide), ruleset


def choose_candidate(
    advice: Advice, ruleset: Ruleset, choose: str | None, *, force: bool
) -> Advice:
    """The advice about the candidate that --choose names.

    Raises InputError where it may not be taken.
    """
    if choose is None:
        return advice
    from advisor.advice.advise import with_choice
    from advisor.methods.composition import parse_composition

    wanted = parse_composition(choose, at="--choose")
    if wanted == advice.recommendation.composition:
        return advice
    found = next(
        (candidate for candidate in advice.alternatives if candidate.composition == wanted), None
    )
    if found is None and wanted.chain:
        from advisor.advice.advise import candidate_of

        found = candidate_of(advice, ruleset, wanted)
    if found is None:
        listed = [
            str(candidate.composition)
            for candidate in (advice.recommendation, *advice.alternatives)
        ]
        raise InputError(
            f"--choose: '{wanted}' is not among the candidates here",
            allowed=f"candidates: {', '.join(listed)}, or any other chain with a scheme",
        )
    if not found.forced_ok:
        raise InputError(
            f"--choose: '{wanted}' cannot be taken: {found.because[0].text}",
            hint="--force does not override this",
        )
    if not force:
        raise InputError(
            f"--choose: '{wanted}' is not recommended: {found.because[0].text}",
            hint="add --force to take it all the same",
        )
    return with_choice(advice, found)


def resolve_plan(advice: Advice, ruleset: Ruleset) -> tuple[Plan | None, Comments, list[str]]:
    """The plan of the recommended candidate, or what is missing for one."""
    from advisor.advice.planning import make_plan, missing_for_plan

    candidate: Candidate = advice.recommendation
    if not candidate.composition.chain:
        return None, {}, []
    missing = missing_for_plan(advice, candidate, ruleset)
    if missing:
        return None, {}, missing
    plan, comments = make_plan(advice, candidate, ruleset)
    return plan, comments, []


def require_plan(advice: Advice, ruleset: Ruleset) -> tuple[Plan, Comments]:
    """The plan, where one is asked for. Raises InputError saying what is missing."""
    plan, comments, missing = resolve_plan(advice, ruleset)
    if plan is not None:
        return plan, comments
    composition = advice.recommendation.composition
    if not composition.chain:
        raise InputError(
            f"the answer is '{composition}', which trains nothing: there is no plan to write"
            " or run",
            hint=(
                "to train all the same: --choose"
                f" {shlex.quote(str(advice.alternatives[0].composition))} --force"
            ),
        )
    flags = {
        "data.path": "--data FILE",
        "data.examples": "--examples FILE with requests and answers",
        "model": "--model with a hub id or a folder",
        "tasks": "--tasks NAME=FILE for each task",
        "reward_model": (
            "--reward-model with the folder of one, or an rm stage before: --choose"
            " 'sft>rm>ppo+lora'"
        ),
    }
    raise InputError(
        f"a plan needs more: {', '.join(missing)}",
        allowed="; ".join(flags[key] for key in missing if key in flags),
    )


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1))


def console(*, stderr: bool = False) -> Console:
    """A rich console that keeps to NO_COLOR, the terminal's width, and plain text where there is no
    terminal.
    """
    from rich.console import Console

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process with exit code 1

    return Printer(stderr=stderr, highlight=False, soft_wrap=False)


# --------------------------------------------------------------------------- the commands


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="advise")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on standard output, no questions."
)
@answer_options
@rule_options
@click.option("--plan", "plan_file", metavar="FILE", help="Write the launch file too.")
@click.option(
    "--choose",
    metavar="COMPOSITION",
    help="Take this candidate instead: sft+lora, sft>rm>ppo+qlora, ...",
)
@click.option(
    "--force",
    is_flag=True,
    help=(
        "Let --choose take what is ranked lower or advised against, and --plan replace a file that"
        " is there already."
    ),
)
@click.pass_context
def advise(
    context: click.Context,
    /,
    as_json: bool,
    answers_file: str | None,
    rule_layers: tuple[str, ...],
    plan_file: str | None,
    choose: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Says which fine-tuning method to use, why and why not, and writes one launch file that runs
    it.

    Without a command and without flags it asks a few questions (on a terminal). With --json it
    answers at once.
    """
    if context.invoked_subcommand is not None:
        used = [name for name, value in options.items() if value not in (None, ())]
        if as_json or answers_file or rule_layers or plan_file or choose or force or used:
            raise InputError(
                f"flags before the command '{context.invoked_subcommand}' are not read",
                hint=f"write them behind it: advise {context.invoked_subcommand} ...",
            )
        return
    answers, warnings, base = read_answers(answers_file, options, rule_layers)
    if not as_json and not answers.known and plan_file is None and choose is None:
        from advisor.commands.wizard import wizard

        context.exit(wizard(rule_layers))
    advice, ruleset = advise_on(
        answers, warnings, rule_layers, base=base, online=plan_file is not None
    )
    advice = choose_candidate(advice, ruleset, choose, force=force)
    plan, comments, missing = (
        resolve_plan(advice, ruleset)
        if plan_file is None or not advice.fits
        else (*require_plan(advice, ruleset), [])
    )
    if plan_file is not None and plan is not None:
        from advisor.plan.write_target import given_paths, write_plan_file

        inputs = given_paths(answers, base, answers_file, *find_rule_layers(rule_layers)[1])
        write_plan_file(plan, comments, Path(plan_file), inputs=inputs, force=force)
        click.echo(
            "wrote"
            f" {plan_file}{f'; start it with: advise run {shlex.quote(plan_file)}' if plan.launch.startable else ''}",
            err=True,
        )
    if as_json:
        from advisor.plan.write import plan_data
        from advisor.render.advice_json import advice_document

        print_json(
            advice_document(
                advice, plan=None if plan is None else plan_data(plan, comments), missing=missing
            )
        )
        for warning in advice.warnings:
            click.echo(f"warning: {warning}", err=True)
    else:
        from advisor.render.terminal import print_advice

        print_advice(advice, console(), plan_path=plan_file)
    context.exit(0 if advice.fits else 3)


def run_options(command: Command) -> Command:
    """What `advise run` and `advise demo` can change about a run."""
    for option in reversed(
        [
            click.option(
                "--output", metavar="DIR", help="Run folder; left out: ./runs/<name>-<digest>."
            ),
            click.option(
                "--dry-run",
                is_flag=True,
                help="Measure two steps on the longest rows and one evaluation batch, then stop.",
            ),
            click.option("--only", metavar="NAME", help="Train one stage or task alone."),
            click.option(
                "--set",
                "set_values",
                multiple=True,
                metavar="KEY=VALUE",
                help="Change the plan: --set stages.0.learning_rate=1e-4 (repeatable).",
            ),
            click.option(
                "--max-steps",
                type=click.IntRange(min=1),
                metavar="N",
                help="Stop every stage after N steps, for a trial.",
            ),
            click.option(
                "--no-judge",
                is_flag=True,
                help="Train, save and check that the result loads; no comparison.",
            ),
        ]
    ):
        command = option(command)
    return command


RUN_KEYS = ("output", "dry_run", "only", "set_values", "max_steps", "no_judge")


@advise.command()
@click.argument("plan", required=False, metavar="[PLAN]")
@answer_options
@rule_options
@run_options
@click.option(
    "--choose", metavar="COMPOSITION", help="Take this candidate instead of the recommended one."
)
@click.option(
    "--force", is_flag=True, help="Let --choose take what is ranked lower or advised against."
)
@click.option("--json", "as_json", is_flag=True, help="Print run.json at the end.")
@click.pass_context
def run(
    context: click.Context,
    /,
    plan: str | None,
    answers_file: str | None,
    rule_layers: tuple[str, ...],
    choose: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Trains what a plan says, stage by stage, and resumes by itself.

    With answers instead of a plan it advises first; with neither it takes ./plan.yaml.
    """
    settings = {key: options.pop(key) for key in RUN_KEYS}
    stated = answers_file is not None or any(value not in (None, ()) for value in options.values())
    if plan is not None and stated:
        raise InputError(
            "both a plan and answers are given",
            allowed="advise run PLAN, or advise run with answers and flags",
            hint="to change a plan: --set stages.0.learning_rate=1e-4",
        )
    if plan is None and not stated:
        if not Path(PLAN_FILE).exists():
            raise InputError(
                f"there is no ./{PLAN_FILE}, and no answers are given",
                allowed="advise run PLAN, or advise run --task qa --data FILE ...",
                hint="`advise` asks and writes one",
            )
        plan = PLAN_FILE
    if plan is not None:
        context.exit(run_plan_file(Path(plan), settings, as_json=as_json))
    answers, warnings, base = read_answers(answers_file, options, rule_layers)
    advice, ruleset = advise_on(answers, warnings, rule_layers, base=base, online=True)
    advice = choose_candidate(advice, ruleset, choose, force=force)
    made, comments = require_plan(advice, ruleset) if advice.fits else (None, {})
    from advisor.render.terminal import print_advice

    print_advice(advice, console(stderr=True))
    if made is None:
        click.echo("nothing was started: it does not fit (see above for what would)", err=True)
        context.exit(3)
    context.exit(run_made_plan(made, comments, settings, as_json=as_json))


def run_made_plan(
    plan: Plan, comments: Comments, settings: Mapping[str, Any], *, as_json: bool = False
) -> int:
    """Write a plan that was just made into its run folder and train it. Returns the exit code."""
    from advisor.launch import run_plan

    return _finished(run_plan(plan, comments=comments, **run_arguments(settings)), as_json=as_json)


def run_plan_file(path: Path, settings: Mapping[str, Any], *, as_json: bool = False) -> int:
    """Train a launch file. Returns the exit code."""
    from advisor.launch import run_plan

    return _finished(run_plan(path, **run_arguments(settings)), as_json=as_json)


def run_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The launcher's arguments for the options of a run."""
    arguments = {
        key: value
        for key, value in settings.items()
        if key != "no_judge" and value not in (None, ())
    }
    from advisor.render.report import write_report

    return {**arguments, "judge": not settings.get("no_judge", False), "on_end": write_report}


def _finished(run: Any, *, as_json: bool) -> int:
    from advisor.render.run import print_run, run_json

    if as_json:
        print_json(run_json(run))
    print_run(run, console(stderr=as_json))
    return int(run.exit_code)


@advise.command()
@run_options
@click.pass_context
def demo(context: click.Context, /, **settings: Any) -> None:
    """Trains a small real model on bundled data with the recommended method, and shows what
    changed.
    """
    from advisor.commands.demo import demo as demonstrate

    context.exit(demonstrate(settings))


@advise.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--with",
    "voices",
    multiple=True,
    metavar="NAME",
    help="A task, a stage, or `base`: who answers. Repeatable.",
)
@click.option("--system", metavar="TEXT", help="Instructions that stand before the talk.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N"
)
@click.pass_context
def chat(
    context: click.Context,
    runs: tuple[str, ...],
    voices: tuple[str, ...],
    system: str | None,
    max_new_tokens: int,
) -> None:
    """Talks to what was trained, beside its base; the newest run where none is named.

    Questions may also come from a pipe.
    """
    from advisor.commands.chat import chat as talk

    context.exit(talk(runs, voices=voices, system=system, max_new_tokens=max_new_tokens))


@advise.command()
@click.argument("run", required=False, metavar="[RUN]")
@click.option(
    "--to",
    required=True,
    metavar="FORM",
    help="`merged`: a LoRA result as one plain model, compared with the unmerged one.",
)
@click.option("--out", metavar="FOLDER", help="Where to (default: export/FORM in the run folder).")
@click.option("--only", metavar="NAME", help="One task or stage.")
@click.pass_context
def export(
    context: click.Context, run: str | None, to: str, out: str | None, only: str | None
) -> None:
    """Writes a result in another form; the newest run where none is named."""
    from advisor.commands.export import export as write

    context.exit(write(run, to=to, out=out, only=only))


@advise.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def probe(as_json: bool) -> None:
    """Shows what this machine offers for training."""
    from advisor.probe import probe as probe_machine
    from advisor.render.probe import print_probe, probe_json

    hardware = probe_machine()
    if as_json:
        print_json(probe_json(hardware))
    else:
        print_probe(hardware, console())


@advise.command()
@click.argument("data")
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="ROLE=COLUMN",
    help="Which column is what: --map question=prompt answer=completion.",
)
@click.option(
    "--eval",
    "evaluation",
    metavar="FILE",
    help="Rows kept for evaluation: are any of them in the data?",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help=(
        "Count tokens with this model's tokenizer and try its chat template, where its folder is at"
        " hand."
    ),
)
@click.option(
    "--seq-len",
    type=click.IntRange(min=8),
    metavar="N",
    help="Say which rows are longer than N tokens.",
)
@click.option(
    "--full", is_flag=True, help="With --model: count the tokens of every row, not of a sample."
)
@click.option(
    "--show-row",
    type=int,
    metavar="N",
    help=(
        "Show row N as the trainers see it: with --model in its chat template, and what of it is"
        " learned."
    ),
)
@click.option(
    "--fix",
    "fix_to",
    metavar="OUT",
    help="Write a cleaned copy, and OUT.changes.jsonl with every change.",
)
@click.option("--force", is_flag=True, help="Let --fix replace a file that is there already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.pass_context
def check(
    context: click.Context,
    /,
    data: str,
    mapping: tuple[str, ...],
    evaluation: str | None,
    model: str | None,
    seq_len: int | None,
    full: bool,
    show_row: int | None,
    fix_to: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Tells what a data file is, what it can train and what is wrong with it."""
    from advisor.situation.answers import answers_from_flags

    stated, _ = answers_from_flags({"data_mapping": mapping}, load_facts())
    columns = stated.value("data_mapping")
    if show_row is not None:
        from advisor.commands.show_row import row_as_trained
        from advisor.render.row import print_row, row_json

        shown = row_as_trained(data, row=show_row, model=model, mapping=columns)
        print_json(row_json(shown)) if as_json else print_row(shown, console())
        return
    if fix_to is not None:
        from advisor.data.fix import fixed_copy
        from advisor.render.fixed import fixed_json, print_fixed

        fixed = fixed_copy(data, fix_to, mapping=columns, overwrite=force)
        print_json(fixed_json(fixed)) if as_json else print_fixed(fixed, console())
        return
    if force:
        raise InputError("--force goes with --fix OUT")
    from advisor.commands.check import check_data
    from advisor.render.data import check_json, print_check

    found, advice = check_data(
        data, mapping=columns, full=full, evaluation=evaluation, model=model, seq_len=seq_len
    )
    print_json(check_json(found, advice)) if as_json else print_check(found, advice, console())
    context.exit(0 if found.objectives else 2)


def spec_options(command: Command) -> Command:
    """One option for each key of a run spec that has a flag."""
    from advisor.commands.estimate import SPEC_FLAGS

    for key, kind in reversed(list(SPEC_FLAGS.items())):
        command = click.option(
            f"--{key.replace('_', '-')}",
            f"spec_{key}",
            type=kind,
            metavar="N" if kind in (int, float) else "TEXT",
        )(command)
    return command


@advise.command()
@click.argument("plan", required=False, metavar="[PLAN]")
@click.option(
    "--specs",
    metavar="FILE",
    help="A JSON list of run specs, `-` for standard input; answers a list of the same length.",
)
@spec_options
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def estimate(plan: str | None, specs: str | None, as_json: bool, **flags: Any) -> None:
    """Tells how much memory and time a run needs: of a plan (on another card with --gpu), of one
    spec by flags, or of a list of specs.
    """
    from advisor.commands import estimate as estimating

    documents = estimating.documents_of(
        plan, specs, {key.removeprefix("spec_"): value for key, value in flags.items()}
    )
    if as_json:
        click.echo(estimating.as_json(documents, listed=specs is not None or plan is not None))
    else:
        from advisor.render.estimate import estimates_text

        click.echo(estimates_text(documents, width=min(console().width, 120)))


@advise.command()
@click.argument("rule_id", required=False, metavar="[ID|facts|lint]")
@rule_options
@click.option(
    "--json", "as_json", is_flag=True, help="With `lint`: one JSON document on standard output."
)
@click.pass_context
def rules(
    context: click.Context, rule_id: str | None, rule_layers: tuple[str, ...], as_json: bool
) -> None:
    """Lists the rules, explains one (advise rules document/scenario-5), lists the facts (advise
    rules facts), or proves them (advise rules lint).
    """
    from advisor.render.rules import print_facts, print_rule, print_rules

    if rule_id == "lint":
        from advisor.advice.linting import lint_rules
        from advisor.render.lint import lint_json, lint_text

        found = lint_rules(*find_rule_layers(rule_layers))
        print_json(lint_json(found)) if as_json else click.echo(lint_text(found))
        context.exit(found.exit_code)
    if as_json:
        raise InputError("--json goes with `advise rules lint`")
    ruleset, _ = load_rule_set(rule_layers)
    if rule_id is None:
        print_rules(ruleset, console())
    elif rule_id == "facts":
        print_facts(ruleset, console())
    else:
        print_rule(ruleset, rule_id, console())


def repeat_map_flag(arguments: list[str]) -> list[str]:
    """The arguments with `--map a=x b=y` written as `--map a=x --map b=y`, since both are natural
    to type.
    """
    result: list[str] = []
    inside = False
    for argument in arguments:
        if inside and "=" in argument and not argument.startswith("-") and result[-1] != "--map":
            result.append("--map")
        inside = argument == "--map" or (
            inside and "=" in argument and not argument.startswith("-")
        )
        result.append(argument)
    return result


def main() -> None:
    """Entry point of the `advise` command."""
    open_standard_streams()
    try:
        # Not click's own main(), which ends with exit code 1 where the reader of the output has
        # gone.
        with advise.make_context("advise", repeat_map_flag(sys.argv[1:])) as context:
            advise.invoke(context)
        sys.stdout.flush()
        code = 0
    except AdviseError as error:
        click.echo(error.text(), err=True)
        code = error.exit_code
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, EOFError, click.Abort):
        click.echo("stopped", err=True)
        code = Stopped.exit_code
    except BrokenPipeError:
        drop_output()
        code = 0
    except OSError as error:
        refusal = refused_by_system(error)
        if refusal is not None and error.filename is None:  # the output itself
            drop_output()
        if refusal is not None:
            click.echo(refusal.text(), err=True)
        code = report_bug(error) if refusal is None else refusal.exit_code
    except Exception as error:
        code = report_bug(error)
    sys.exit(code or 0)


def open_standard_streams() -> None:
    """A standard stream that was closed by whoever started this (`<&-`) is empty, or takes
    everything, as with /dev/null.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def drop_output() -> None:
    """What standard output still holds goes nowhere, so that the end of the process does not fail
    on it once more.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_bug(error: BaseException) -> int:
    """An exception nobody planned for: say so and keep the trace in a file.

    Returns exit code 70.
    """
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="advise-bug-", suffix=".log", delete=False) as log:
        log.write(f"finetune-advisor {__version__}\n{' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=log)
    click.echo(
        f"this is a bug in advise: {type(error).__name__}: {error}\n  the details are in"
        f" {log.name}",
        err=True,
    )
    return AdviseError.exit_code
