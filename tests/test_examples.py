"""The company's rules in examples/ are proved, tested by their own examples, and obeyed."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from advisor.advice.linting import lint_rules
from advisor.cli import advise
from advisor.ground.errors import InputError
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS

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
    assert not found.report.of("error") + found.report.of("warning")
    assert found.scenarios == 6
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
