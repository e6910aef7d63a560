"""`advise` without a command: the wizard, or the answer to the flags, as text or JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.commands.options import facts_given
from advisor.commands.output import console, print_json, say
from advisor.commands.session import (
    advise_on,
    choose_candidate,
    input_paths,
    nothing_to_train,
    read_answers,
    refuse_missing,
    resolve_plan,
)
from advisor.plan.write import plan_data
from advisor.plan.write_target import write_plan_file
from advisor.render.advice_json import advice_document


def answer(
    options: Mapping[str, Any],
    *,
    answers_file: str | None,
    rule_layers: tuple[str, ...],
    plan_file: str | None,
    choose: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Advise, write the launch file if one was asked for, and print the answer.

    Returns the exit code: 3 if nothing fits, or a plan was asked for and nothing is trained.

    Raises InputError for inputs that cannot be used.
    """
    stated = read_answers(answers_file, facts_given(options), rule_layers)
    if not as_json and not stated.answers.known and plan_file is None and choose is None:
        from advisor.commands.wizard import wizard  # the terminal's libraries

        return wizard(rule_layers)
    advice, ruleset = advise_on(stated, rule_layers, online=plan_file is not None)
    advice = choose_candidate(advice, ruleset, choose, force=force)
    plan, comments, missing = resolve_plan(advice, ruleset)
    nothing = nothing_to_train(advice)
    if nothing:
        missing = [nothing]
    elif plan is None and plan_file is not None and advice.fits:
        refuse_missing(advice, missing)
    if plan_file is not None and plan is not None:
        inputs = input_paths(stated, rule_layers)
        write_plan_file(plan, comments, Path(plan_file), inputs=inputs, force=force)
        start = f"; start it with: advise run {shlex.quote(plan_file)}"
        say(f"wrote {plan_file}{start if plan.launch.startable else ''}")
    if as_json:
        data = None if plan is None else plan_data(plan, comments)
        print_json(advice_document(advice, plan=data, missing=missing))
        for warning in advice.warnings:
            say(f"warning: {warning}")
    else:
        from advisor.render.terminal import print_advice  # --json prints without it

        print_advice(advice, console(), plan_path=plan_file if plan is not None else None)
    if nothing and plan_file is not None:
        say(nothing)
    return 3 if not advice.fits or (nothing and plan_file is not None) else 0
