"""`advise` without a command: the wizard, or the answer to the flags, as text or JSON."""

from __future__ import annotations

import shlex
from pathlib import Path

from advisor.commands.options import AdviceOptions
from advisor.commands.output import console, print_json, say, with_error
from advisor.commands.session import (
    advise_on,
    choose_candidate,
    nothing_to_train,
    read_answers,
    resolve_plan,
)
from advisor.ground.errors import AdviseError, InputError
from advisor.plan.write import plan_data, write_plan_file
from advisor.render.advice_json import advice_document
from advisor.render.next_steps import is_elsewhere


def answer(options: AdviceOptions) -> int:
    """Advise, write the launch file if one was asked for, and print the answer.

    Returns the exit code: 3 if nothing fits, or a plan was asked for and nothing is trained.

    Raises AdviseError for inputs that cannot be used, and, after the answer was printed, for a plan
    that was asked for and lacks something or cannot be written.
    """
    plan_file, rule_layers = options.plan_file, options.rule_layers
    if options.brief and not options.as_json:
        raise InputError("--brief goes with --json", where="--brief")
    stated = read_answers(options.answers_file, options.flags, rule_layers)
    if not (options.as_json or stated.faults) and stated.answers.value("task") is None:
        from advisor.commands.wizard import on_terminal, wizard  # slow to import

        asks = not stated.answers.known or (options.answers_file is None and on_terminal())
        if asks and plan_file is None and options.choose is None:
            if options.why:
                say("--why: the whole answer is in the menu after the questions")
            return wizard(rule_layers, stated.answers)
    advice, ruleset = advise_on(stated, rule_layers, online=plan_file is not None)
    advice = choose_candidate(advice, ruleset, options.choose, force=options.force)
    plan, comments, missing = resolve_plan(advice, ruleset)
    nothing = nothing_to_train(advice, ruleset)
    refusal: AdviseError | None = None
    if nothing:
        missing = missing or [nothing]
    elif plan is None and plan_file is not None and advice.fits:
        from advisor.commands.choosing import incomplete  # few answers need it

        refusal = incomplete(missing, advice)
    if plan_file is not None and plan is not None:
        try:
            write_plan_file(plan, comments, Path(plan_file), force=options.force)
        except AdviseError as error:
            refusal = error
        else:
            start = f"; start it with: advise run {shlex.quote(plan_file)}"
            if is_elsewhere(advice):  # this machine would refuse it
                start = f"; carry it to the GPU: advise export {shlex.quote(plan_file)} --to bundle"
            say(f"wrote {plan_file}{start if plan.launch.startable else ''}")
    code = 3 if not advice.fits or (nothing and plan_file is not None) else 0
    written = plan_file if plan is not None and refusal is None else None
    if options.as_json:
        if options.why:
            say("--why has no effect with --json, which holds the whole answer")
        if options.brief:
            from advisor.render.brief_json import brief_document  # with the page: seldom

            exit_code = code if refusal is None else refusal.exit_code
            document = brief_document(advice, exit_code=exit_code, plan_path=written)
        else:
            data = None if plan is None else plan_data(plan, comments)
            document = advice_document(advice, plan=data, missing=missing, plan_path=written)
        print_json(document if refusal is None else with_error(document, refusal.faults))
        for warning in dict.fromkeys(advice.warnings):
            say(f"warning: {warning}")
    else:
        from advisor.render.terminal import print_advice, print_whole_answer  # not for --json

        shown = print_whole_answer if options.why else print_advice
        shown(advice, console(), plan_path=written)
    if refusal is not None:
        raise refusal  # the answer stands all the same: it was printed
    if nothing and plan_file is not None:
        say(nothing)
    return code
