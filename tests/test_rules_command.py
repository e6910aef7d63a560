"""`advise rules`: a list, an explanation of each name, what two rule sets answer differently, and the
company's rules in examples/: proved, tested by their own examples, and obeyed."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from advisor.advice import linting
from advisor.advice.linting import lint_rules
from advisor.cli import advise
from advisor.commands import lint as lint_command
from advisor.ground.errors import InputError
from advisor.methods.remedies import remedies, remedy
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS
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


ACME = Path(__file__).resolve().parent.parent / "examples" / "acme" / "acme.yaml"
LAW = shlex.split(
    "--task domain_expertise --depth domain_knowledge --data-kind raw_text "
    "--budget high --gpu H200 --model Qwen/Qwen3-0.6B"
)


def run(*arguments, rules=("--rules", str(ACME))):
    return CliRunner().invoke(advise, [*arguments, *rules], catch_exceptions=False)


def answer(*arguments, **more):
    """The document of this question, by the company's rules or by none but the shipped."""
    return json.loads(run("--json", *arguments, **more).stdout)


def test_the_company_file_is_proved_and_its_own_tests_hold():
    """`advise rules lint` finds nothing, and what the file disables is gone, with its reason."""
    done = run("rules", "lint")
    assert done.exit_code == 0, done.output
    found = lint_rules(SHIPPED_LAYERS, (ACME,))
    assert (not found.report.of("error") + found.report.of("warning"), found.scenarios) == (True, 6)
    ruleset = load_rules(overlays=(ACME,))
    own = [rule for rules in ruleset.rules.values() for rule in rules if rule.layer == "acme"]
    assert (len(own), all(rule.examples for rule in own)) == (6, True)
    assert ruleset.rule("evidence/labels-on-text") is None
    assert "cannot be deployed" in ruleset.disabled["evidence/labels-on-text"]


def test_the_shipped_answer_would_be_full_tuning():
    """Without the company's file the answer is full tuning, so there is something to forbid."""
    found = answer(*[*LAW[:-1], "Qwen/Qwen3-0.6B-Base", "--data-tokens", "5000000000"], rules=())
    verdicts = {one["composition"]: one.get("verdict")
                for one in (found["recommendation"], *found["alternatives"])}  # fmt: skip
    assert any(one != "forbidden" for name, one in verdicts.items() if name.endswith("+full"))


def test_full_tuning_stays_forbidden_even_with_force(monkeypatch):
    """--choose with --force is exit code 2 with the reason; ADVISE_RULES does what --rules does."""
    document = answer(*LAW)
    full = next(item for item in document["alternatives"] if item["composition"].endswith("+full"))
    assert (full["verdict"], full["because"][0]["rule"]) == ("forbidden", "acme/no-full-tuning")
    assert document["rules"]["layers"] == ["document", "evidence", "acme"]
    said = r"Whole models of our own are not kept[\s\S]*--force does not override this"
    with pytest.raises(InputError, match=said) as refused:
        run("--json", *LAW, "--choose", full["composition"], "--force")
    assert refused.value.exit_code == 2
    monkeypatch.setenv("ADVISE_RULES", str(ACME))
    assert answer(*LAW, rules=()) == document


def test_little_money_means_qlora():
    """A low budget means QLoRA by the company's rule, where shipped rules take a LoRA that fits."""
    question = shlex.split(
        "--task generation --data-kind paired --data-rows 4000 --budget low "
        "--gpu 'RTX 4090' --model Qwen/Qwen3-4B-Instruct-2507"
    )
    shipped, ours = (answer(*question, **more)["recommendation"] for more in ({"rules": ()}, {}))
    assert (shipped["composition"], ours["composition"]) == ("sft+lora", "sft+qlora")
    assert ours["decided_by"][-1] == "acme/qlora-for-little-money"


def test_a_fact_of_the_companys_own_can_be_stated():
    """--signal takes the new fact: its rule decides and warns, and data are read once."""
    question = shlex.split(
        "--task customer_service --depth style --data-kind paired --data-rows 4000 "
        "--gpu 'RTX 4090' --model Qwen/Qwen3-8B --signal contains_customer_data"
    )
    document = answer(*question)
    assert document["recommendation"]["composition"].startswith("rag & sft+")
    assert "acme/customers-are-looked-up" in document["recommendation"]["decided_by"]
    assert any("privacy officer" in warning for warning in document["warnings"])
    with pytest.raises(InputError, match="unknown signal 'contains_customer_data'"):
        answer("--task", "qa", "--signal", "contains_customer_data", rules=())
