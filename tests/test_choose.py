"""--choose: a chain or a scheme alone, near misses, and hints that work when they are pasted."""

import json
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import ELSEWHERE, InputError
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import parse_composition
from tests.conftest import PAIRS, examples

PAIRED = "--task generation --data-kind paired --data-rows 3000"
JUDGED = "--task chat_assistant --data-kind preference --data-rows 5000"
FACTS = "--task qa --signal facts_change_often"


def answer(call, line, gpu="RTX 4090"):
    """Exit code and document of an answer."""
    code, out, _ = call("--json", "--gpu", gpu, *shlex.split(line))
    return code, json.loads(out)


def composition(call, line):
    """The composition that was taken."""
    return answer(call, f"{line} --force")[1]["recommendation"]["composition"]


@pytest.mark.parametrize(
    ("asked", "choose", "taken"),
    [
        # A chain takes the recommended scheme, a scheme keeps the recommended chain.
        (JUDGED, "", "dpo+lora"),
        (JUDGED, "kto", "kto+lora"),
        (JUDGED, "sft>dpo", "sft>dpo+lora"),
        (JUDGED, "simpo", "simpo+lora"),
        (JUDGED, "qlora", "dpo+qlora"),
        (JUDGED, "adapter", "dpo+adapter"),
        (JUDGED, "dpo@per_task", "dpo+lora@per_task"),
        (JUDGED, "dpo+qlora", "dpo+qlora"),
        (JUDGED, " rag ", "rag"),
        # Where the answer is a remedy alone, the chain is that of the best candidate that trains.
        (FACTS, "", "rag"),
        (FACTS, "qlora", "sft+qlora"),
        (FACTS, "dpo", "dpo+lora"),
    ],
)
def test_a_part_of_a_composition_is_enough(call, asked, choose, taken):
    """The rest is what was recommended."""
    assert composition(call, asked + (f" --choose '{choose}'" if choose else "")) == taken


@pytest.mark.parametrize(
    ("name", "hint"),
    [("simpoo", "'simpo'"), ("ipo", "'dpo'"), ("rlhf", "'ppo'"), ("q-lora", "'qlora'"),
     ("xyz", "`advise rules` explains")],
)  # fmt: skip
def test_an_unknown_method_is_told_what_exists(call, name, hint):
    """The nearest name, and all there are."""
    code, document = answer(call, f"{PAIRED} --choose {name}")
    (fault,) = document["error"]
    assert (code, fault["where"]) == (2, "--choose")
    known = (*objectives(), *schemes(), *remedies())
    assert [one for one in known if one not in fault["allowed"]] == []
    assert hint in fault["hint"]


def test_names_of_elsewhere_lead_to_methods_that_exist():
    """A hint never names what there is not."""
    assert {ELSEWHERE[name] for name in ("ipo", "cpo", "rlhf", "reward", "pt")} <= {*objectives()}
    assert {ELSEWHERE["freeze"], ELSEWHERE["p_tuning"]} <= {*schemes()}


REMEDIES = [  # answers that train nothing
    "--task qa --data FILES/corpus.txt --signal facts_change_often",
    "--task qa --signal facts_change_often",
    "--task domain_expertise --depth domain_knowledge --data FILES/corpus.txt"
    " --model Qwen/Qwen3-0.6B",
    "--task domain_expertise --data FILES/corpus.txt --signal needs_citations",
    "--task multi_department --signal facts_change_often",
    "--task chat_assistant --data-kind none",
    "--task chat_assistant --data-kind preference --data-rows 50",
    "--task classification --data-kind raw_text --data-rows 50",
    "--task tool_use --data-kind raw_text --data-rows 300",
    "--task structured_output --data FILES/corpus.txt",
    "--task reasoning --signal base_model_never_succeeds",
    "--task code --data FILES/corpus.txt",
    "--task customer_service --data FILES/corpus.txt",
]


@pytest.mark.parametrize("line", REMEDIES, ids=lambda line: line[:60])
@pytest.mark.parametrize("command", ["--json --plan plan.yaml", "run --json"])
def test_the_hint_that_trains_all_the_same_makes_a_plan(call, tmp_path, line, command):
    """Exit code 3 names options that make a plan as they stand, once their files are there."""
    files = tmp_path / "FILES"
    files.mkdir()
    pair = '{{"prompt": "Is shop {} open?", "chosen": "Yes, until six.", "rejected": "No idea."}}\n'
    text = "Section {0} tells of pump {0}, its valves and their care.\n\n"
    (files / "corpus.txt").write_text("".join(text.format(n) for n in range(40)))
    (files / "judged.jsonl").write_text("".join(pair.format(n) for n in range(60)))
    (files / "pairs.jsonl").write_text(PAIRS)
    asked = f"{command} --gpu 'RTX 4090' {line}"
    code, out, err = call(*shlex.split(asked))
    document = json.loads(out)
    assert (code, document["plan"], len(document["missing"])) == (3, None, 1), err
    assert document["recommendation"]["composition"].split(" & ")[0] in remedies()
    assert not (tmp_path / "plan.yaml").exists()
    if command == "run --json":  # training is another test's
        return
    hint = document["missing"][0].split("to train all the same: ")[1].partition(" (")[0]
    assert hint == shlex.join(shlex.split(hint))
    data = "judged" if "dpo" in hint else "pairs"
    options = hint.replace("examples.jsonl", f"FILES/{data}.jsonl")
    if "--data " in options:
        asked = re.sub(r" --data-(kind|rows) \S+", "", asked)
    code, out, err = call(*shlex.split(f"{asked} {options}"))
    assert (code, bool(json.loads(out)["plan"])) == (0, True), err
    assert (tmp_path / "plan.yaml").exists()


def test_a_hint_names_the_choice_again(call):
    """What is not recommended says how to take it; pasted, it is taken."""
    code, document = answer(call, f"{PAIRED} --choose 'rag & sft+prefix'")
    hint = document["error"][0]["hint"]
    assert (code, hint) == (2, "to take it anyway: --choose 'rag & sft+prefix' --force")
    assert composition(call, f"{PAIRED} {hint.split(': ')[1]}") == "rag & sft+prefix"


def test_qlora_is_lora_on_a_4bit_base():
    """Inside there are two keys, and no second copy of LoRA."""
    found = parse_composition("sft+qlora")
    assert (found.update, found.quantization, found.scheme) == ("lora", "nf4", "qlora")


@examples(2, deadline=200)
@given(
    st.lists(st.sampled_from(objectives()), min_size=1, max_size=3),
    st.sampled_from(list(schemes())),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(remedies()), unique=True, max_size=2),
)
def test_any_composition_is_lossless(chain, scheme, per_task, encoder, remedies):
    """Text -> value -> text changes nothing."""
    chained = f"{'encoder:' if encoder else ''}{'>'.join(chain)}+{scheme}"
    text = " & ".join([*remedies, chained + ("@per_task" if per_task else "")])
    assert str(parse_composition(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompting & rag & sft+lroa", "did you mean 'lora'"),
        ("stf+lora", "did you mean 'sft'"),
        ("promting", "did you mean 'prompting'"),
        ("sft+lora & rm+lora", "two training chains"),
        ("", "neither"),
        # The scheme stands behind; one fault says so, and not one for each word.
        ("lora+sft", r"\A[^\n]*\n([^\n]*\n)?  did you mean 'sft\+lora'\?\Z"),
    ],
)
def test_says_what_is_wrong(text, said):
    """An unreadable composition names the part and the nearest known name."""
    with pytest.raises(InputError, match=said):
        parse_composition(text)
