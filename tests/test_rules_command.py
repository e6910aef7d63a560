"""`advise rules`: a list, an explanation of each name, and what two rule sets answer differently."""

import json
import re
import shlex
import subprocess

import pytest

from advisor.advice import linting
from advisor.commands import lint as lint_command
from advisor.methods.remedies import remedies, remedy
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rules", ["document/scenario-5"]),
        ("rules document/scenario-5", ["Scenario 5: Limited Budget, One GPU", "Wilson Wu"]),
        ("rules DPO", ["Direct preference optimisation"]),
        ("rules sft>dpo+lora", ["Supervised", "Direct preference", " lora  "]),
        ("rules 'rag & encoder:sft+full'", ["retrieval", "Supervised", "Full fine-tuning"]),
        ("help rules", ["Usage: advise rules", "explains a rule"]),
        ("rules ppo", ["one answer to each prompt"]),
        ("rules grpo", ["answers to each prompt (key `generations`)"]),
        *(
            (f"rules {name}", [remedy(name).meaning, "recommended by",
                               "begin" if remedy(name).first else ""])
            for name in remedies()
        ),
    ],
)  # fmt: skip
def test_rules_can_be_listed_and_explained(call, line, words):
    """`advise rules` lists rules; with an id, a method or a remedy it explains, with sources."""
    code, out, _ = call(*shlex.split(line))
    text = out + " ".join(out.split())
    assert (code, [one for one in words if one not in text]) == (0, [])


def test_rules_diff_names_the_situations_that_change(call, monkeypatch):
    """`advise rules diff A B` gives step, condition, rules and an example with both answers."""
    compare, known = linting.compare_answers, {}

    def compared(*sets):
        """What takes seconds, and is the same for the text and for the data."""
        digests = tuple(one.digest for one in sets)
        known[digests] = known.get(digests) or compare(*sets)
        return known[digests]

    monkeypatch.setattr(linting, "compare_answers", compared)
    code, out, err = call("rules", "diff", "document", "shipped")
    assert code == 0, err
    said = (
        "knowledge_source: where the facts that the answers need should come from",
        "base/knowledge-weights -> evidence/",
        ": sft+lora -> rag",
    )
    assert [words for words in said if words not in out] == []
    steps = json.loads(call("rules", "diff", "document", "shipped", "--json")[1])["steps"]
    assert {step["step"] for step in steps} >= {"chain", "rank", "settings"}
    code, out, _ = call("rules", "diff", "shipped", str(ROOT / "rules"))
    assert (code, out.endswith("every situation has the same answer\n")) == (0, True)


@pytest.mark.parametrize("words", [["shipped"], ["shipped", "nowhere"], ["a", "b", "c"]])
def test_rules_diff_says_what_a_rule_set_is(words, call):
    """One, three or an unknown one: bad input, and what is allowed."""
    code, out, err = call("rules", "diff", *words)
    assert (code, out) == (2, "")
    assert "`shipped`, `document` (the guide alone), a file of rules" in err


@pytest.mark.parametrize(
    ("own", "full"), [((), False), (("--rules", "examples/acme/acme.yaml"), True), ((), True)]
)
def test_shipped_rules_are_proved_in_one_line(call, monkeypatch, own, full):
    """Who only uses them reads that they are sound; who changes them reads every remark."""
    monkeypatch.setattr(lint_command, "have_changed", lambda: full and not own)
    code, out, _ = call("rules", "lint", *(str(ROOT / one) if "/" in one else one for one in own))
    assert code == 0
    assert ("different situations proved" in out) is full
    assert full or re.fullmatch(r"The shipped rules are sound: .*--json lists .*\n", out)


def test_rules_in_a_checkout_are_ones_own_once_they_are_changed(tmp_path, monkeypatch):
    """By git; a folder that it does not know may hold anything."""
    monkeypatch.setattr(lint_command, "rules_dir", lambda: tmp_path)
    assert lint_command.have_changed()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert not lint_command.have_changed()
    (tmp_path / "new.yaml").touch()
    assert lint_command.have_changed()
