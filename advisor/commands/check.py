"""`advise check`: what a data file is, what it can train, and what is wrong with it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from msgspec.structs import replace

from advisor.advice.search.fit import settings_by_data, suited_objective
from advisor.commands.check_options import DEFAULTS, CheckOptions
from advisor.commands.options import json_option
from advisor.commands.output import (
    SCHEMA_VERSION,
    console,
    print_json,
    put,
    refuse_without,
    run_tool,
    say,
    with_error,
)
from advisor.data import profile
from advisor.data.amounts import compare_amounts
from advisor.data.checks import worst_first
from advisor.data.measure import Depth, unusable
from advisor.data.read.source import typed_path
from advisor.data.templates.tokenizer import model_tokenizer
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.extras import all_extras, extras
from advisor.ground.types import DataFinding, DataProfile
from advisor.ground.yaml_files import parse_yaml
from advisor.launch.failure_report import KINDS
from advisor.render.data import check_json
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.situation.answers import answers_from_flags
from advisor.situation.suggestions import template_fit

ONE_FILE = {
    "--json": "as_json",
    "--show-row": "show_row",
    "--eval": "evaluation",
    "--plan": "plan_file",
}  # flags that are about one file -> their options
UNREADABLE = InputError.exit_code


def check_each(files: Sequence[str], check: Callable[[str], int], options: CheckOptions) -> int:
    """Check each file and return the exit code: 2 if one could not be read, else the highest.

    A file that cannot be read keeps nobody from seeing the others. Raises InputError for an option
    that is about one file if there are several.
    """
    if len(files) == 1:
        return check(files[0])
    if alone := options.given(ONE_FILE):
        raise InputError(
            f"{alone[0]} is about one file, and there are {len(files)}",
            where=alone[0],
            hint=f"check one file at a time with {alone[0]}",
        )
    codes = []
    for path in files:
        put(f"== {path}")
        try:
            codes.append(check(path))
        except AdviseError as error:
            say(error.text())
            codes.append(error.exit_code)
        put("")
    # One that could not be read is worse than one that does not fit: nothing is known about it.
    return UNREADABLE if UNREADABLE in codes else max(codes)


SHOW_ROW_NEEDS = ("transformers", "tokenizers", "jinja2")


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="ROLE=COLUMN",
    help="Which column is what: --map question=prompt answer=completion. Repeat it, or name"
    " several at once; a name with spaces in quotes: --map 'question=The text, answer=Reply'.",
)
@click.option(
    "--eval",
    "evaluation",
    metavar="FILE",
    type=click.Path(),
    help="Evaluation rows: report which of them are also in the data.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help=(
        "Count tokens with this model's tokenizer and try its chat template, if its folder is on"
        " this machine."
    ),
)
@click.option(
    "--template",
    multiple=True,
    metavar="NAME=VALUE",
    help="With --model: an argument of its chat template, such as enable_thinking=false.",
)
@click.option(
    "--seq-len",
    type=click.IntRange(min=8),
    metavar="N",
    help="Report which rows are longer than N tokens.",
)
@click.option(
    "--full", is_flag=True, help="With --model: count the tokens of every row, not of a sample."
)
@click.option(
    "--show-row",
    type=int,
    metavar="N",
    help=(
        "Show row N as the trainers see it: with --model in its chat template, and which tokens"
        " the model learns."
    ),
)
@click.option(
    "--gpu",
    metavar="NAME",
    help="Of a configuration: the GPU to answer for; default: that of this machine.",
)
@click.option(
    "--plan",
    "plan_file",
    metavar="FILE",
    type=click.Path(),
    help="Of a configuration: write it as a plan, the file for `advise run`.",
)
@click.option(
    "--fix",
    "fix_to",
    metavar="FILE",
    type=click.Path(),
    help="Of a configuration: write it with the suggested changes, comments kept.",
)
@click.option("--as-is", is_flag=True, help="With --plan: without the suggested changes.")
@json_option
@click.pass_context
def check(context: click.Context, /, data: tuple[str, ...], **options: Any) -> None:
    """Check data, a training script, a configuration or a run, and say what is wrong.

    Data: what they can train. A Python script, a notebook, a configuration of TRL, LLaMA-Factory,
    Axolotl or Unsloth: whether it fits the GPU, and what to change; with an error text beside it,
    why it ran out of memory. A run, of any trainer that writes trainer_state.json, or ours:
    whether it learned.
    """
    for line in all_extras().warnings():
        say(f"warning: {line}")
    given, files = CheckOptions(**options), [*map(typed_path, data)]
    if len(files) == 2:
        for path, other in (files, reversed(files)):
            for extra in extras().values():
                if check_both := extra.recognise_beside(path, other):
                    context.exit(int(check_both(path, given)))
    context.exit(check_each(files, lambda path: _check(path, given), given))


def _check(path: str, options: CheckOptions) -> int:
    """Check one file as what an optional feature recognises, else as data, and print what was
    found. Returns the exit code.
    """
    for extra in extras().values():
        if check_as := extra.recognise(path):
            return int(check_as(path, options))
    stated = answers_from_flags({"data_mapping": options.mapping}, load_facts())
    hint = f"the questions take it:\n    advise --data {shlex.quote(path)}"
    if options.fix_to is not None:
        mend = "mend the rows that the findings name; `--map` says which column is what"
        raise InputError("rows are not rewritten", where="--fix", hint=mend)
    options.refuse({"--gpu": "gpu", "--plan": "plan_file", "--as-is": "as_is"}, "data", hint)
    columns, arguments = stated.value("data_mapping"), _template_arguments(options)
    if options.show_row is not None:
        shown = row_as_trained(path, options.show_row, options.model, columns, arguments)
        if options.as_json:
            print_json({"schema_version": SCHEMA_VERSION, "checked": "data", **shown})
        else:
            from advisor.render.check_page import print_row  # with rich, which --json does without

            print_row(shown, console())
        return 0
    found, advice = check_data(path, options)
    refused = unusable(found)
    if options.as_json:
        document = {**check_json(found, advice), "checked": "data"}
        print_json(document if refused is None else with_error(document, refused.faults))
    else:
        from advisor.render.check_page import print_check

        print_check(found, advice, console())
    return 0 if refused is None else refused.exit_code


def check_data(path: str, options: CheckOptions = DEFAULTS) -> tuple[DataProfile, dict[str, Any]]:
    """The profile of a data file, and what follows from it (advise_on_data).

    Raises InputError if the data cannot be read or is not recognised.
    """
    stated = answers_from_flags({"data_mapping": options.mapping}, load_facts())
    mapping, model, seq_len = stated.value("data_mapping"), options.model, options.seq_len
    tokenizer, note = None, ""
    if model is not None:
        tokenizer, note = model_tokenizer(model, _template_arguments(options))
    depth = Depth(
        full=options.full, strict=False, whole=True, thorough=True, evaluation=options.evaluation,
        seq_len=seq_len,
    )  # fmt: skip
    found = profile(path, depth, mapping=mapping, count_tokens=tokenizer)
    if tokenizer is not None:
        findings = worst_first([*found.findings, *tokenizer.findings(found.objectives)])
        blocked = {objective for finding in findings for objective in finding.blocks}
        objectives = tuple(name for name in found.objectives if name not in blocked)
        found = replace(found, findings=findings, objectives=objectives)
    elif model is not None:
        texts, _ = template_fit(model, [found], mapping)
        fit = [
            DataFinding(id="template-of-family", severity="warning", text=text) for text in texts
        ]
        found = replace(found, findings=(*fit, *found.findings))
    if note:
        absent = DataFinding(id="tokenizer-not-at-hand", severity="note", text=note)
        found = replace(found, findings=(*found.findings, absent))
    return found, {**advise_on_data(found, seq_len=seq_len), "model": model}


def _template_arguments(options: CheckOptions) -> dict[str, Any]:
    if options.template and options.model is None:
        raise InputError(
            "--template has no effect without --model", where="--template", hint="name the model"
        )
    found = {}
    for text in options.template:
        name, equals, value = text.partition("=")
        at = f"--template {text}"
        parsed = parse_yaml(value, name=at).data if equals and value.strip() else None
        if not name.isidentifier() or not isinstance(parsed, bool | int | float | str):
            raise InputError(
                "not an argument",
                where=at,
                allowed="NAME=VALUE with true, false, a number or a text",
            )
        found[name] = parsed
    return found


def advise_on_data(found: DataProfile, *, seq_len: int | None = None) -> dict[str, Any]:
    """How many rows each objective needs, and the sequence length (the plan's own) and the packing
    that the lengths of the rows suggest.
    """
    objective = suited_objective(found)
    chosen = settings_by_data(load_rules(), found, objective) if objective is not None else {}
    suggested = None
    if chosen:
        suggested = {
            "objective": objective,
            "seq_len": chosen["seq_len"].value,
            "because": chosen["seq_len"].because,
            "packing": chosen["packing"].value,
            "packing_because": chosen["packing"].because,
        }
    return {"amounts": compare_amounts(found), "suggested": suggested, "asked_length": seq_len}


def row_as_trained(
    data: str,
    row: int,
    model: str | None = None,
    mapping: Mapping[str, str] | None = None,
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A row as the trainers see it, computed by their own code: its stretches of text with
    `learned`, its counts and notes, as JSON values.

    Raises:
        InputError: No such row, file or model.
        MachineNotReady: The training packages are not installed.
    """
    if row < 1:
        raise InputError("rows are counted from 1", where=f"--show-row {row}")
    refuse_without(SHOW_ROW_NEEDS, "--show-row")
    asked = {"data": data, "row": row, "model": model}
    asked |= {"mapping": dict(mapping or {}) or None, "template": dict(template or {})}
    done = run_tool("show_row", json.dumps(asked), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        ended = f"it ended with exit code {done.returncode}"
        last = (done.stderr.strip().splitlines() or [ended])[-1]
        raise AdviseError(f"could not show the row: {last}", hint="this is a bug") from None
    error = document.get("error")
    if error is not None:
        raise KINDS.get(int(error["exit_code"]), AdviseError)(
            error["what"], error["allowed"], error["hint"]
        )
    return document
