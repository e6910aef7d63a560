"""`advise rules lint`: prove the rules, and say what is wrong with them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from advisor.advice.linting import lint_rules
from advisor.commands.output import print_json, put, say, with_error
from advisor.commands.session import find_rule_layers
from advisor.ground.errors import InputError
from advisor.ground.resources import PACKAGE, method_roots, rules_dir
from advisor.render.lint import lint_json, lint_line, lint_text
from advisor.schema.build import catalogue_faults


def lint(rule_layers: Sequence[str], *, as_json: bool) -> int:
    """Print what was proved and found; of sound rules that are as shipped one line. Returns the
    exit code.
    """
    layers, overlays = find_rule_layers(rule_layers)
    found = lint_rules(layers, overlays, faults=catalogue_faults())
    if as_json:
        document, broken = lint_json(found), found.faults
        print_json(with_error(document, broken) if broken else document)
        if broken:
            say(InputError(faults=broken).text())
    else:
        whole = overlays or found.exit_code or have_changed()
        put(lint_text(found) if whole else lint_line(found))
    return found.exit_code


def have_changed() -> bool:
    """Whether the rules may be other than they were shipped: with methods of one's own, changed in
    a checkout, or in a folder that git does not know.
    """
    if len(method_roots()) > 1 or rules_dir().is_relative_to(PACKAGE):
        return len(method_roots()) > 1
    command = ["git", "-C", str(rules_dir()), "status", "--porcelain", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:  # no git here
        return True
    return bool(done.returncode or done.stdout)
