"""Answers in three forms with one precedence, and --choose: a chain or a scheme alone, near misses, and
hints that work when they are pasted."""

import json
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import ELSEWHERE, InputError
from advisor.ground.yaml_files import parse_yaml
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import load_facts
from advisor.situation.answers import (
    answers_document,
    answers_from_document,
    answers_from_flags,
    merge_answers,
)
from tests.conftest import PAIRS, examples

FACTS = load_facts()


def from_text(text):
    return answers_from_document(parse_yaml(text, name="answers.yaml"), FACTS)


def test_a_file_fills_every_fact_of_the_contract():
    """All keys of the documented answers file are read."""
    answers, warnings = from_text(
        "task: customer_service\nbudget: {usd: 50, hours: 8}\ndepth: style\ndata: {path:"
        " train.jsonl, examples: pairs.jsonl, kind: paired, rows: 5000, tokens:"
        " null}\nreward_model: rm\nmodel: Qwen/Qwen3-8B\nmodel_params_b: 8.2\ngpu: {name: RTX 4090,"
        " vram_gib: 24, count: 2}\nserve_with: vllm\npriority: quality\nsignals:"
        " [facts_change_often, prompting_tried]\n"
    )
    assert not warnings
    assert {key: answer.value for key, answer in answers.known.items()} == {
        "task": "customer_service", "budget_usd": 50, "budget_hours": 8, "depth": "style",
        "data_path": "train.jsonl", "data_examples": "pairs.jsonl", "reward_model": "rm",
        "data_kind": "paired", "data_rows": 5000,
        "model": "Qwen/Qwen3-8B", "model_params_b": 8.2, "gpu": "RTX 4090", "gpu_memory_gib": 24,
        "gpus": 2, "serve_with": "vllm", "priority": "quality",
        "signals": ("facts_change_often", "prompting_tried"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "signals", ["[needs_citations]", "{needs_citations: true, rag_tried: false}"]
)
def test_an_answers_file_is_lossless(signals):
    """What is read can be written and read again, as JSON with escapes, too."""
    answers, _ = from_text(
        "task: qa\nbudget: low\ngpu: RTX 4090\nreward_model: r😀m\ndata: {rows: 100, examples:"
        f" pairs.jsonl}}\nsignals: {signals}\n"
    )
    assert from_text(json.dumps(answers_document(answers)))[0] == answers


def test_a_signal_says_yes_or_no():
    """A map of signals reads true and false, and a denied one is known until a flag says yes."""
    answers, _ = from_text(
        "task: qa\nsignals: {rag_tried: true, needs_citations: true, prompt_meets_quality_bar:"
        " false, access_control: false, latency_critical: null}\n"
    )
    assert answers.signals == ("rag_tried", "needs_citations")
    assert {name: answers.value(name) for name in ("prompt_meets_quality_bar", "access_control",
    "latency_critical")} == {
        "prompt_meets_quality_bar": False, "access_control": False, "latency_critical": None,
    }  # fmt: skip
    merged = merge_answers(answers, answers_from_flags({"signals": ["access_control"]}, FACTS))
    assert ("access_control" in merged.signals, merged.value("access_control")) == (True, None)
    for text in ("maybe", "'yes'", "5", "[true]"):
        with pytest.raises(InputError, match=r"`rag_tried` is .*\n  true or false"):
            from_text(f"task: qa\nsignals: {{rag_tried: {text}}}\n")


@pytest.mark.parametrize("nothing", ["[]", "{}", "null"])
def test_null_and_no_signals_state_nothing(nothing):
    """A key that is null counts as left out; an empty list or map of signals states none."""
    text = f"task: qa\nbudget: null\ndata: {{path: null}}\ngpu: null\nsignals: {nothing}\n"
    found, warnings = from_text(text)
    assert (set(found.known) - {"signals"}, found.signals, not warnings) == ({"task"}, (), True)


def test_all_faults_come_together_with_their_places(approved):
    """One message names every fault of the file, each with line and column."""
    with pytest.raises(InputError) as error:
        from_text("task: qq\nbudgt: low\ndata: {rows: -1, knd: paired}\n")
    approved(error.value.text())


@pytest.mark.parametrize(
    "text",
    ["priority: [quality, cost]", "task: [qa]", "budget: [low]", "data: {kind: [paired]}",
     "depth: {a: 1}"],
)  # fmt: skip
def test_several_values_where_one_is_wanted_are_refused(text):
    """A list or a map is no choice, and the values that are stand beside it."""
    with pytest.raises(InputError, match=r"answers.yaml:1:\d+: `\w+` is a (list|map)\n  one of "):
        from_text(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rag_tryed", "did you mean 'rag_tried'?"),
        ("quantum", "`advise rules facts` lists them all"),
    ],
)
def test_an_unknown_signal_is_a_warning(name, said):
    """It is named and left out, with the nearest signal; without one, where all of them stand."""
    answers, (warning,) = from_text(f"task: qa\nsignals: [{name}, needs_citations]\n")
    assert (answers.signals, said in warning) == (("needs_citations",), True)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        # The name of a fact, its flag or its last part at the top of the file.
        ("rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("data_rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("data-rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("vram_gib: 24", "write it inside `gpu`: `gpu: {vram_gib: ...}`"),
        ("gpu-memory: 24", "write it inside `gpu`: `gpu: {vram_gib: ...}`"),
        ("facts_change_often: true", "it is a signal: `signals: [facts_change_often]`"),
        ("n-tasks: 3", "write `n_tasks`"),
        # Amounts as people write them.
        ("data: {rows: '500'}", "remove the quotes"),
        ("data: {rows: thousands}", ""),
        ("data: {rows: 5k}", "write one number in digits, without quotes"),
        ("data: {rows: '1,500'}", "write one number in digits, without quotes"),
        ("data: {rows: ~2M}", "write one number in digits, without quotes"),
        ("data: {rows: 1000-5000}", "write one number in digits, without quotes"),
    ],
)
def test_what_was_meant_is_said(line, hint):
    """A fact in the wrong place is told its own, a number in words is answered with the number."""
    with pytest.raises(InputError) as error:
        from_text(f"task: qa\n{line}\n")
    assert [fault.hint for fault in error.value.faults] == [hint]


def test_flags_win_over_the_file():
    """A flag replaces the file's answer, a new card its memory; usd and hours are limits."""
    file, _ = from_text("task: qa\nbudget: low\ngpu: {name: RTX 4090, vram_gib: 24}\n")
    merged = merge_answers(file, answers_from_flags({"budget": "high", "gpu": "H100"}, FACTS))
    found = [merged.value(name) for name in ("task", "budget", "gpu", "gpu_memory_gib")]
    assert (found, merged.known["budget"].origin) == (["qa", "high", "H100", None], "flag")
    known = answers_from_flags({"budget": "usd=20,hours=6"}, FACTS).known
    assert {key: one.value for key, one in known.items()} == {"budget_usd": 20, "budget_hours": 6}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "lo"}, "did you mean 'low'"),
        ({"budget": "usd=many"}, "--budget.usd is 'many'\n  a number of US dollars"),
        ({"tasks": ["legal"]}, "NAME=VALUE is expected"),
        ({"tasks": ["a=x", "a=y"]}, "given twice"),
        ({"tasks": ["a=x", "b=y"], "n_tasks": 3.0}, "n_tasks is 3, but 2 tasks are named"),
        ({"signals": ["nonsense"]}, "unknown signal"),
        ({"data_rows": 1.5}, "--data-rows is 1.5\n  a whole number of rows"),
    ],
)
def test_a_wrong_flag_says_what_is_allowed(flags, said):
    """Each contradictory or unreadable flag is refused with a reason."""
    with pytest.raises(InputError, match=said):
        answers_from_flags(flags, FACTS)


PAIRED = "--task generation --data-kind paired --data-rows 3000"
JUDGED = "--task chat_assistant --data-kind preference --data-rows 5000"
CHANGING_FACTS = "--task qa --signal facts_change_often"


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
        (CHANGING_FACTS, "", "rag"),
        (CHANGING_FACTS, "qlora", "sft+qlora"),
        (CHANGING_FACTS, "dpo", "dpo+lora"),
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


@pytest.mark.parametrize(
    ("command", "line"),
    [
        *(("--json --plan plan.yaml", line) for line in REMEDIES),
        *(("run --json", line) for line in REMEDIES[::4]),
    ],
)
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


@pytest.mark.parametrize(
    "typed",
    [
        ["question=The text", "answer=Reply"],
        ["question = The text", "answer = Reply"],
        ["question=The text, answer=Reply"],
        ["question='The text' answer=Reply"],
        ['question="The text"; answer="Reply"'],
    ],
)
def test_columns_are_named_as_people_write_them(typed):
    """Repeated, several at once, with blanks, and with names in quotes."""
    stated = answers_from_flags({"data_mapping": typed}, load_facts())
    assert stated.value("data_mapping") == {"question": "The text", "answer": "Reply"}
