"""Each remedy: a step to paste, at home and hosted, its cost, its measure, and what helps then."""

import json
import shlex

import pytest

from advisor.advice.case import REMEDIES_OF_GATE
from advisor.ground.errors import InputError
from advisor.methods import remedies, remedy
from advisor.methods.remedies import OTHER_TOOL
from advisor.ruleset.facts import load_facts

# What the answer to a gate can be, with a situation that leads there.
LEADS_TO = {
    "prompting": ("--task", "qa", "--data-kind", "none"),
    "rag": ("--task", "qa", "--signal", "needs_citations"),
    "tool_use": ("--task", "tool_use", "--data-kind", "none"),
    "constrained_decoding": ("--task", "structured_output", "--data-kind", "none"),
    "bigger_model": ("--task", "reasoning", "--signal", "base_model_never_succeeds"),
}
TRAINED = ("--task", "qa", "--data-kind", "paired", "--data-rows", "3000")
SITUATIONS = {
    **LEADS_TO,
    "training alone": TRAINED,
    # Whoever tried retrieval is not told to set it up, beside a training or alone.
    **{
        f"a search that is there, and {kind}": (
            "--task", "qa", "--data-kind", kind, "--data-rows", 3000, "--signal", "rag_tried",
        )
        for kind in ("raw_text", "paired")
    },
    "what must stay in the house is not sent out": (*LEADS_TO["rag"], "--priority", "privacy"),
    # A prompt that was said to be good enough is not said again once it was not.
    "a prompt that is good enough": ("--task", "qa", "--signal", "prompt_meets_quality_bar"),
    # Beside training the search's steps say what each half is for.
    "two halves": (
        "--task", "customer_service", "--data-kind", "paired", "--data-rows", 3000, "--depth", "style",
        "--signal", "facts_change_often",
    ),
}  # fmt: skip
FORMS = (("--json",), (), ("--why",))


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_remedy_has_a_first_step(approved, call, name):
    """Both ways have whole commands to paste, a cost and a score, in a dozen lines or so."""
    flags = ("--gpu", "unknown", *SITUATIONS[name])
    (_, out, _), (_, short, _), (_, whole, _) = (call(*flags, *one) for one in FORMS)
    found = json.loads(out)["recommendation"]
    section = whole.split("What to do next")[1].split("\n\n")[0].splitlines()
    assert len(section) <= 15 or found["stages"]
    last = short.rstrip().split("\n\n")[-1].splitlines()
    approved([found["composition"], found["next_steps"], last, section])


def test_every_remedy_of_the_gate_has_a_file_and_steps():
    """The flags, signals and answers that they name exist; an unknown one is told with them."""
    answered = {name for names, _ in REMEDIES_OF_GATE.values() for name in names}
    # The last resort where nothing fits has its ways out, and another tool steps of its own.
    assert answered | {"smaller_model", OTHER_TOOL} == set(remedies())
    facts = load_facts()
    known = {fact.flag for fact in facts.values()} | {"--signal"}
    for one in map(remedy, set(remedies()) - {"smaller_model", OTHER_TOOL}):
        assert one.first
        assert one.measure
        words = shlex.split(one.helps_then.replace("`", "'").replace("'s ", "s "))
        flags = {word for word in words if word.startswith("--")}
        assert flags
        assert flags <= known
        named = [words[i + 1].rstrip(".") for i, word in enumerate(words) if word == "--signal"]
        assert all(facts[name].signal for name in (*named, *one.again.get("signals", ())))
        assert set(one.again) - {"signals"} <= set(facts)
        assert one.again["data_path"] in one.write
        assert one.again["data_path"] in one.helps_then
    with pytest.raises(InputError, match="prompting, rag"):
        remedy("hoping")


@pytest.mark.parametrize("form", [("--json",), ()], ids=["json", "page"])
def test_a_plan_asked_for_where_nothing_is_trained(approved, call, tmp_path, form):
    """It is exit code 3 with the whole answer and no file; `advise run` too starts nothing."""
    asked = (*form, "--gpu", "unknown", *LEADS_TO["rag"])
    (code, out, err), (_, of_run, _) = ended = call(*asked, "--plan", "p.yaml"), call("run", *asked)
    assert not (tmp_path / "p.yaml").exists()
    if form:
        document = json.loads(out)
        assert json.loads(of_run)["recommendation"]["composition"] == "rag"
        out = [document["plan"], document["missing"]]
    approved([code, out, err, ended[1][0], ended[1][2]])


def test_why_prints_the_whole_answer(call):
    """And changes nothing of a document, which holds all of it: a word on standard error says so."""
    flags = (*TRAINED, "--gpu", "unknown")
    _, short, _ = call(*flags)
    _, whole, _ = call(*flags, "--why")
    assert ("Why not the others" in whole, "Why not the others" in short) == (True, False)
    assert len(short.splitlines()) < 30 < len(whole.splitlines())
    _, plain, _ = call(*flags, "--json")
    code, document, err = call(*flags, "--json", "--why")
    assert (code, document, "--why has no effect with --json" in err) == (0, plain, True)


def test_what_was_chosen_by_hand_is_what_the_next_line_trains(call):
    """The lines to type carry the choice, and what speaks against it stands in place of why."""
    flags = (*TRAINED, "--gpu", "RTX 4090")
    code, out, _ = call(*flags, "--choose", "sft+adapter", "--force")
    assert (code, "(sft+adapter, which you chose)" in " ".join(out.split())) == (0, True)
    assert "\nAgainst  " in out
    assert "sft+lora: the rules recommend it here" in out
    assert "--data examples.jsonl --choose sft+adapter --force --dry-run" in out
    assert "Unsure" not in out
    _, whole, _ = call(*flags, "--choose", "sft+adapter", "--force", "--why")
    assert "What would change the answer" not in whole
    assert "--choose sft+adapter --force" in whole


def test_a_smaller_model_is_one_of_some_size(call):
    """No change to a model of 0 parameters is promised."""
    flags = (
        "--json --task code --budget low --gpu 'A100 40GB' --gpus 4 --data-kind paired"
        " --data-rows 21210 --data-tokens 3181500 --signal base_model_never_succeeds"
        " --signal host_memory_limited=no"
    )
    changes = [flip["change"] for flip in json.loads(call(*shlex.split(flags))[1])["flips"]]
    sizes = [change.get("params_b", change.get("model_params_b")) for change in changes]
    assert [size for size in sizes if size is not None] == [0.65]
