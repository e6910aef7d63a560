"""`advise run`: train a plan, or advise first and train what was recommended."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from advisor.commands.options import (
    RUN_OPTIONS,
    AdviceOptions,
    Sections,
    answer_options,
    choose_option,
    json_option,
    rule_options,
    run_options,
)
from advisor.commands.output import console, print_json, say, with_error
from advisor.commands.session import (
    advise_on,
    choose_candidate,
    nothing_to_train,
    read_answers,
    refuse_data,
    resolve_plan,
)
from advisor.commands.training import train_or_follow
from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE
from advisor.render.advice_json import advice_document
from advisor.render.terminal import print_advice
from advisor.situation.answers import command_line


@click.command(cls=Sections)
@click.argument("plan", required=False, metavar="[PLAN]", type=click.Path())
@answer_options
@rule_options
@run_options
@choose_option
@click.option(
    "--force",
    is_flag=True,
    help="Let --choose take a candidate that ranks lower or is advised against.",
)
@json_option
@click.pass_context
def run(context: click.Context, /, plan: str | None, **options: Any) -> None:
    """Train a plan stage by stage, and resume automatically.

    With answers instead of a plan it advises first and trains what was recommended; with neither it
    takes ./plan.yaml. If the run is at work already, it says how far it is. --json prints run.json
    at the end. On a terminal a menu follows: with `< /dev/null` there is none.
    """
    settings = {name: options.pop(name) for name in RUN_OPTIONS}
    given = AdviceOptions.of(options)
    if plan is not None and given.states_answers:
        raise InputError(
            "both a plan and answers are given",
            allowed="a plan, or answers and flags",
            hint="to change a plan: --set stages.0.learning_rate=1e-4",
        )
    if plan is None and not given.states_answers:
        if not Path(PLAN_FILE).exists():
            raise InputError(
                f"there is no ./{PLAN_FILE}, and no answers are given",
                allowed="a plan, or answers: --task, --data and others, or --answers with a file",
                hint="`advise` asks the questions and writes a plan",
            )
        plan = PLAN_FILE
    if plan is not None:
        refuse_data(plan)
        context.exit(train_or_follow(Path(plan), settings, as_json=given.as_json))
    stated = read_answers(given.answers_file, given.flags, given.rule_layers)
    advice, ruleset = advise_on(stated, given.rule_layers, online=True)
    advice = choose_candidate(advice, ruleset, given.choose, force=given.force)
    nothing = nothing_to_train(advice, ruleset)
    print_advice(advice, console(stderr=True), read_in="run")
    if nothing or not advice.fits:
        why = nothing or "nothing fits; see above for what would"
        say(f"nothing was started: {why}")
        if given.as_json:
            missing = resolve_plan(advice, ruleset)[2] if advice.fits else []
            print_json(advice_document(advice, plan=None, missing=missing or [why]))
        context.exit(3)
    made, comments, missing = resolve_plan(advice, ruleset)
    if made is None:
        from advisor.commands.choosing import incomplete

        refusal = incomplete(missing, advice)
        if given.as_json:  # the answer stands all the same
            document = advice_document(advice, plan=None, missing=missing)
            print_json(with_error(document, refusal.faults))
        raise refusal
    method = f" --choose {shlex.quote(given.choose)} --force" if given.choose else ""
    flags = command_line(advice.situation.answers, {}).removeprefix("advise run ")
    settings["flags"] = f"{flags}{method}"
    context.exit(train_or_follow(made, settings, comments=comments, as_json=given.as_json))
