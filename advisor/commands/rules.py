"""`advise rules`: list, explain or prove the rules."""

from __future__ import annotations

import re
from pathlib import Path

import click

from advisor.commands.options import completed, json_option, rule_options
from advisor.commands.output import console, print_json, put
from advisor.commands.session import load_rule_set
from advisor.ground.errors import InputError
from advisor.ground.resources import docs_page
from advisor.methods.composition import ENCODER
from advisor.render.rules import (
    names_of_methods,
    print_facts,
    print_method,
    print_rule,
    print_rules,
)
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Ruleset

RULE_SETS = (
    "`shipped`, `document` (the guide alone), a file of rules (on top of the shipped ones), or the"
    " rules folder of another version"
)


@click.command()
@click.argument(
    "words",
    nargs=-1,
    metavar="[ID|METHOD|facts|lint|schema|agents|diff A B]",
    shell_complete=completed(
        lambda: [
            *("facts", "lint", "schema", "agents", "diff"),
            *names_of_methods(),
            *(rule.id for table in load_rules().rules.values() for rule in table),
        ]
    ),
)
@click.option("--out", metavar="DIR", help="With `schema`: the folder to write to.")
@rule_options
@json_option
@click.pass_context
def rules(
    context: click.Context,
    words: tuple[str, ...],
    out: str | None,
    rule_layers: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the rules, explain one, or prove them all.

    `advise rules document/scenario-5` explains a rule, `advise rules dpo` a method, `advise rules
    facts` lists the facts, `advise rules lint` proves the rules, and `advise rules schema` writes
    the JSON Schemas of all files that people write. `advise rules diff A B` names the situations
    that two rule sets answer differently: each is `shipped`, `document`, a file of rules, or the
    rules folder of another version. `advise rules agents` prints how a coding agent uses `advise`
    with --json. Only `lint` and `diff` take --json, only `schema` --out.
    """
    rule_id = words[0] if words else None
    if rule_id == "diff":
        _compare(words[1:], rule_layers, as_json=as_json)
        return
    if len(words) > 1:
        raise InputError(
            f"{len(words)} names: {', '.join(words)}",
            where="advise rules",
            allowed="one rule, method, `facts`, `lint`, `schema` or `agents`; or `diff A B`",
        )
    if rule_id == "lint":
        from advisor.commands.lint import lint  # the proof, which no other answer needs

        context.exit(lint(rule_layers, as_json=as_json))
    if as_json:
        raise InputError(
            "--json goes with `advise rules lint` and `advise rules diff`", where="--json"
        )
    if out is not None and rule_id != "schema":
        raise InputError("--out goes with `advise rules schema`", where="--out")
    if rule_id == "agents":
        put(docs_page("agents").rstrip("\n"))
        return
    ruleset, _ = load_rule_set(rule_layers)
    if rule_id == "schema":
        from advisor.schema.build import write_schemas  # which no other answer needs

        written = write_schemas(ruleset, None if out is None else Path(out))
        put(f"wrote {len(written)} JSON Schemas to {written[0].parent}")
    elif rule_id is None:
        print_rules(ruleset, console())
    elif rule_id == "facts":
        print_facts(ruleset, console())
    elif names := _methods_in(rule_id):
        for name in names:
            print_method(name, ruleset, console())
    else:
        print_rule(ruleset, rule_id, console())


def _methods_in(text: str) -> list[str]:
    """The methods in a text as pages write them, each once: `DPO`, `rag & sft>dpo+lora`; none if a
    part is no method.
    """
    parts = dict.fromkeys(re.split(r"\s*[+>&]\s*", text.lower().replace(ENCODER, "")))
    return [*parts] if {*names_of_methods()} >= parts.keys() else []


def _compare(names: tuple[str, ...], rule_layers: tuple[str, ...], *, as_json: bool) -> None:
    if len(names) != 2 or rule_layers:
        raise InputError(
            f"advise rules diff: {len(names)} rule sets{' and --rules' if rule_layers else ''}",
            allowed=f"two of: {RULE_SETS}",
            hint="advise rules diff shipped our-rules.yaml",
        )
    from advisor.advice.linting import compare_answers  # which no other answer needs
    from advisor.render.lint import diff_json, diff_text

    first, second = (_rule_set(name) for name in names)
    compared = compare_answers(first, second)
    both = (names[0], names[1])
    if as_json:
        print_json(diff_json(compared, both, (first, second)))
    else:
        put(diff_text(compared, both, (first, second)))


def _rule_set(name: str) -> Ruleset:
    path = Path(name)
    if name in ("shipped", "document"):
        return load_rules() if name == "shipped" else load_rules(("document",))
    for folder in (path, path / "rules"):
        if (folder / "facts.yaml").is_file():
            return load_rules(root=folder.resolve())
    if path.is_file():
        return load_rules(overlays=(path,))
    raise InputError(f"advise rules diff: no rule set '{name}'", allowed=RULE_SETS)
