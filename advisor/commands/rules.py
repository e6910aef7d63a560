"""`advise rules`: list, explain or prove the rules."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.commands.options import json_option, rule_options
from advisor.commands.output import console, print_json, put
from advisor.commands.session import find_rule_layers, load_rule_set
from advisor.ground.errors import InputError
from advisor.render.method import names_of_methods, print_method
from advisor.render.rules import print_facts, print_rule, print_rules


@click.command()
@click.argument("rule_id", required=False, metavar="[ID|METHOD|facts|lint|schema]")
@click.option("--out", metavar="DIR", help="With `schema`: the folder to write to.")
@rule_options
@json_option
@click.pass_context
def rules(
    context: click.Context,
    rule_id: str | None,
    out: str | None,
    rule_layers: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the rules, explain one, or prove them all.

    `advise rules document/scenario-5` explains a rule, `advise rules dpo` a method, `advise rules
    facts` lists the facts, `advise rules lint` proves the rules, and `advise rules schema` writes
    the JSON Schemas of all files that people write. Only `lint` takes --json, only `schema` --out.
    """
    if rule_id == "lint":
        from advisor.advice.linting import lint_rules  # the proof, which no other answer needs
        from advisor.render.lint import lint_json, lint_text

        found = lint_rules(*find_rule_layers(rule_layers))
        if as_json:
            print_json(lint_json(found))
        else:
            put(lint_text(found))
        context.exit(found.exit_code)
    if as_json:
        raise InputError("--json goes with `advise rules lint`")
    if out is not None and rule_id != "schema":
        raise InputError("--out goes with `advise rules schema`")
    ruleset, _ = load_rule_set(rule_layers)
    if rule_id == "schema":
        from advisor.schema.build import write_schemas  # which no other answer needs

        written = write_schemas(ruleset, None if out is None else Path(out))
        put(f"wrote {len(written)} JSON Schemas to {written[0].parent}")
    elif rule_id is None:
        print_rules(ruleset, console())
    elif rule_id == "facts":
        print_facts(ruleset, console())
    elif rule_id in names_of_methods():
        print_method(rule_id, ruleset, console())
    else:
        print_rule(ruleset, rule_id, console())
