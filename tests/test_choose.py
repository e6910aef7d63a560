"""--choose: a chain or a scheme alone, near misses, and hints that work when they are pasted."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import ELSEWHERE, InputError
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import parse_composition
from tests.conftest import PAIRS, examples

PAIRED = ["--task", "generation", "--data-kind", "paired", "--data-rows", "3000"]
JUDGED = ["--task", "chat_assistant", "--data-kind", "preference", "--data-rows", "5000"]


def answer(call, *arguments, gpu="RTX 4090"):
    """Exit code, document and standard error of an answer."""
    code, out, err = call("--json", "--gpu", gpu, *arguments)
    return code, json.loads(out), err


def composition(call, *arguments, gpu="RTX 4090"):
    """The composition that was taken."""
    return answer(call, *arguments, "--force", gpu=gpu)[1]["recommendation"]["composition"]


@pytest.mark.parametrize(
    ("choose", "taken"),
    [
        ("kto", "kto+lora"),
        ("sft>dpo", "sft>dpo+lora"),
        ("simpo", "simpo+lora"),
        ("qlora", "dpo+qlora"),
        ("adapter", "dpo+adapter"),
        ("dpo@per_task", "dpo+lora@per_task"),
        ("dpo+qlora", "dpo+qlora"),
        (" rag ", "rag"),
    ],
)
def test_a_part_of_a_composition_is_enough(call, choose, taken):
    """A chain takes the recommended scheme, a scheme keeps the recommended chain."""
    assert composition(call, *JUDGED) == "dpo+lora"
    assert composition(call, *JUDGED, "--choose", choose) == taken


def test_a_part_means_the_training_beside_a_remedy(call):
    """Where the answer is a remedy alone, the chain is that of the best candidate that trains."""
    asked = ["--task", "qa", "--signal", "facts_change_often"]
    assert composition(call, *asked) == "rag"
    assert composition(call, *asked, "--choose", "qlora") == "sft+qlora"
    assert composition(call, *asked, "--choose", "dpo") == "dpo+lora"


@pytest.mark.parametrize(
    ("name", "near"),
    [("simpoo", "simpo"), ("ipo", "dpo"), ("rlhf", "ppo"), ("q-lora", "qlora"), ("xyz", None)],
)
def test_an_unknown_method_is_told_what_exists(call, name, near):
    """The nearest name, and all there are."""
    code, document, _ = answer(call, *PAIRED, "--choose", name)
    (fault,) = document["error"]
    assert (code, fault["where"]) == (2, "--choose")
    for known in (*objectives(), *schemes(), *remedies()):
        assert known in fault["allowed"]
    assert f"'{near}'" in fault["hint"] if near else "`advise rules` explains" in fault["hint"]


def test_names_of_elsewhere_lead_to_methods_that_exist():
    """A hint never names what there is not."""
    assert {ELSEWHERE[name] for name in ("ipo", "cpo", "rlhf", "reward", "pt")} <= {*objectives()}
    assert {ELSEWHERE["freeze"], ELSEWHERE["p_tuning"]} <= {*schemes()}


REMEDIES = [  # answers that train nothing
    ["--task", "qa", "--data", "FILES/corpus.txt", "--signal", "facts_change_often"],
    ["--task", "qa", "--signal", "facts_change_often"],
    ["--task", "domain_expertise", "--depth", "domain_knowledge", "--data", "FILES/corpus.txt",
     "--model", "Qwen/Qwen3-0.6B"],
    ["--task", "domain_expertise", "--data", "FILES/corpus.txt", "--signal", "needs_citations"],
    ["--task", "multi_department", "--signal", "facts_change_often"],
    ["--task", "chat_assistant", "--data-kind", "none"],
    ["--task", "chat_assistant", "--data-kind", "preference", "--data-rows", "50"],
    ["--task", "classification", "--data-kind", "raw_text", "--data-rows", "50"],
    ["--task", "tool_use", "--data-kind", "raw_text", "--data-rows", "300"],
    ["--task", "structured_output", "--data", "FILES/corpus.txt"],
    ["--task", "reasoning", "--signal", "base_model_never_succeeds"],
    ["--task", "code", "--data", "FILES/corpus.txt"],
    ["--task", "customer_service", "--data", "FILES/corpus.txt"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", REMEDIES, ids=lambda words: " ".join(words)[:60])
@pytest.mark.parametrize("command", ["advise", "run"])
def test_the_hint_that_trains_all_the_same_makes_a_plan(call, tmp_path, arguments, command):
    """Exit code 3 with the whole answer, and the options that it names make a plan as they stand,
    once their files are there.
    """
    files = tmp_path / "FILES"
    files.mkdir()
    (files / "corpus.txt").write_text(
        "\n\n".join(f"Section {n} tells of pump {n}, its valves and their care." for n in range(40))
    )
    (files / "pairs.jsonl").write_text(PAIRS)
    pair = {"prompt": "Is it open?", "chosen": "Yes, until six.", "rejected": "No idea."}
    (files / "judged.jsonl").write_text(
        "".join(json.dumps({**pair, "prompt": f"Is shop {n} open?"}) + "\n" for n in range(60))
    )
    start = ["run", "--json"] if command == "run" else ["--json", "--plan", "plan.yaml"]
    asked = [*start, "--gpu", "RTX 4090", *arguments]
    code, out, err = call(*asked)
    document = json.loads(out)
    assert (code, document["plan"], len(document["missing"])) == (3, None, 1), err
    assert document["recommendation"]["composition"].split(" & ")[0] in remedies()
    assert not (tmp_path / "plan.yaml").exists()
    if command == "run":  # training is another test's
        return
    line = document["missing"][0].split("to train all the same: ")[1].partition(" (")[0]
    data = "judged" if "dpo" in line else "pairs"
    options = shlex.split(line.replace("examples.jsonl", f"FILES/{data}.jsonl"))
    kept = [word for word in asked if "data-kind" not in word and "data-rows" not in word]
    stated = [word for word in kept if word not in {"raw_text", "preference", "none", "50", "300"}]
    code, out, err = call(*(stated if "--data" in options else asked), *options)
    assert (code, bool(json.loads(out)["plan"])) == (0, True), err
    assert (tmp_path / "plan.yaml").exists()


def test_a_hint_names_the_choice_again(call):
    """What is not recommended says how to take it; pasted, it is taken."""
    code, document, _ = answer(call, *PAIRED, "--choose", "prefix")
    hint = document["error"][0]["hint"]
    assert (code, hint) == (2, "to take it anyway: --choose sft+prefix --force")
    options = shlex.split(hint.split(": ")[1])
    assert composition(call, *PAIRED, *options) == "sft+prefix"


# ---------------------------------------------------------------------- the compositions themselves


def test_the_parts_in_the_other_order_are_put_right():
    """The scheme stands behind; one fault says so, and not one for each word."""
    with pytest.raises(InputError) as caught:
        parse_composition("lora+sft")
    assert [fault.hint for fault in caught.value.faults] == ["did you mean 'sft+lora'?"]


def test_qlora_is_lora_on_a_4bit_base():
    """Inside there are two keys, and no second copy of LoRA."""
    composition = parse_composition("sft+qlora")
    found = (composition.update, composition.quantization, composition.scheme)
    assert found == ("lora", "nf4", "qlora")


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
    ],
)
def test_says_what_is_wrong(text, said):
    """An unreadable composition names the part and the nearest known name."""
    with pytest.raises(InputError, match=said):
        parse_composition(text)
