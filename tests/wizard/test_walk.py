"""Which question comes next, and what becomes of its answer."""

import re
from unittest.mock import Mock

import pytest

from advisor.advice.types import Flip
from advisor.commands.wizard import _refused
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import Fact, Value
from advisor.ruleset.load import load_rules
from advisor.situation.build import model_folder
from advisor.situation.names import NamedModel, NameLookup
from advisor.wizard.asking import machine_lines
from advisor.wizard.conversation import can_be_tried, change_answers
from advisor.wizard.outcome import Checks
from advisor.wizard.prompts import Option, choice_lines, prompt_lines, read_number
from advisor.wizard.walk import (
    BACK,
    DONT_KNOW,
    Relevance,
    Several,
    for_now,
    may_apply,
    open_questions,
    questions,
    skipped_questions,
    walk,
)
from benchmarks.questions import rounds
from tests.conftest import scaled
from tests.render.example_advice import CPU, PROBED_4090, UNKNOWN_HARDWARE
from tests.wizard.scripted import FACTS, ScriptedUi, answers_of, asked_set, known, walked


def test_questions_come_in_the_order_of_the_facts_file():
    """It follows `order`; yes lists a signal, and I don't know leaves the fact out."""
    answers, order = walked({"task": "qa", "facts_change_often": True})
    numbers = [FACTS[fact].order for fact in order]
    assert (numbers, order[0]) == (sorted(numbers), "task")
    assert len(order) > 10
    assert known(answers) == {
        "task": "qa",
        "facts_change_often": True,
        "signals": ("facts_change_often",),
    }


@pytest.mark.parametrize(
    ("replies", "asked", "not_asked"),
    [
        ({"task": "multi_department"}, "n_tasks data_path", ""),
        ({"task": "code"}, "", "needs_citations n_tasks"),
        ({"task": "qa"}, "needs_citations data_kind data_rows", "n_tasks"),
        ({"task": "qa", "data_path": "x.jsonl"}, "", "data_kind data_rows"),
        ({"task": "qa", "data_kind": "none"}, "", "data_rows"),
        ({"task": "qa", "data_kind": "paired"}, "data_rows", ""),
        ({"task": "qa", "prompting_tried": True}, "prompt_meets_quality_bar", ""),
        ({"task": "qa", "prompting_tried": False}, "", "prompt_meets_quality_bar"),
    ],
)
def test_a_question_is_asked_only_where_it_applies(replies, asked, not_asked):
    """A file answers kind and number of rows; who does not know their kind may know how many."""
    order = set(walked(replies)[1])
    assert set(asked.split()) <= order
    assert not set(not_asked.split()) & order


@pytest.mark.parametrize(
    ("before", "replies", "after", "spared"),
    [
        # Who names each team's file is asked neither for their number nor for one file; a file
        # named before is dropped.
        ({"data_path": "x.jsonl"}, {"task": "multi_department", "tasks": {"legal": "a.jsonl"}},
         {"task": "multi_department", "tasks": {"legal": "a.jsonl"}},
         {"n_tasks", "data_path", "data_kind", "data_rows"}),
        # A reply for several facts sets and clears them together.
        ({"gpu": "RTX 4090", "gpus": 2}, {"gpu": Several(values={"gpu": None, "gpus": None})},
         {}, set()),
    ],
    ids=["teams", "several"],
)  # fmt: skip
def test_an_answer_can_settle_several_questions(before, replies, after, spared):
    """It clears what was said before."""
    answers, order = walked(replies, asked_set(**before))
    assert (known(answers), not spared & set(order)) == (after, True)


def test_flags_and_files_are_not_asked_again():
    """What a flag or a file said stands and keeps its origin."""
    file = Answer(value=("needs_citations",), origin="file")
    given = AnswerSet(known={"task": Answer(value="qa", origin="flag"), "signals": file})
    answers, order = walked({"budget": "low", "prompting_tried": False}, given)
    assert not {"task", "needs_citations"} & set(order)
    assert (answers.known["task"].origin, answers.known["budget"].origin) == ("flag", "asked")
    assert answers.signals == ("needs_citations",)
    assert answers.value("prompting_tried") is False  # kept as said, and listed nowhere


def test_back_asks_the_question_before_with_its_answer():
    """Back re-asks the last question, its old answer preselected; the new one counts."""
    ask = Mock(side_effect=["multi_department", BACK, "qa", BACK, "code", *[DONT_KNOW] * 99])
    answers = walk(FACTS, ask, AnswerSet())
    put = [call.args[0] for call in ask.call_args_list]
    assert [(one.fact.id, one.current, one.can_go_back, one.again) for one in put[:6]] == [
        ("task", None, False, False),
        ("tasks", None, True, False),
        ("task", "multi_department", False, True),
        ("data_path", None, True, False),
        ("task", "qa", False, True),
        ("data_path", None, True, False),
    ]
    assert known(answers) == {"task": "code"}


def test_an_answer_that_no_longer_applies_is_dropped():
    """Going back and taking another task drops what was only asked for the old one."""
    replies = iter(["multi_department", DONT_KNOW, 12, BACK, BACK, BACK, "qa"])
    answers = walk(FACTS, lambda question: next(replies, DONT_KNOW), AnswerSet())
    assert known(answers) == {"task": "qa"}


def test_a_question_is_one_fact_and_is_left_out_where_it_does_not_matter():
    """Nothing else has to know a new fact; it is asked if it can matter, the task always."""
    values = {"red": Value(label="Red", help="like blood")}
    extra = Fact(
        id="colour", type="choice", origin="asked", values=values, order=5, ask="Which colour?"
    )
    assert walked({"task": "qa"}, facts={**FACTS, "colour": extra})[1][:2] == ["colour", "task"]
    _, order = walked({"task": "qa"}, relevant=lambda fact, *_: fact == "budget")
    assert order == ["task", "budget"]


def test_what_refines_a_choice_waits_for_the_examples():
    """Who knows nothing of examples is not asked where the model will run; who has some is."""
    everything = for_now(FACTS, lambda *_: True)
    for replies in ({}, {"data_kind": "paired"}, {"data_path": "x.jsonl"}):
        order = walked({"task": "qa", **replies}, relevant=everything)[1]
        assert ("serve_with" in order, "budget" in order) == (bool(replies), True)
    assert for_now(FACTS, None) is None


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({"depth": "style"}, {"depth": "task"}, {"depth": "task"}),
        ({}, {"facts_change_often": True},
         {"facts_change_often": True, "signals": ("facts_change_often",)}),
        ({}, {"teacher_logs_available": True},  # states what it implies
         {"teacher_logs_available": True, "teacher_available": True,
          "signals": ("teacher_logs_available", "teacher_available")}),
        ({"gpu": "Mystery", "gpu_memory_gib": 8.0, "gpus": 4}, {"gpu": "A100 80GB"},
         {"gpu": "A100 80GB"}),  # nothing of the old card is left
        ({"budget_usd": 5, "budget_hours": 2}, {"budget": None}, {}),  # no limit of either kind
    ],
)  # fmt: skip
def test_a_change_is_answered_as_in_a_file(before, change, after):
    """A choice is answered anew, and a signal is listed."""
    answers = asked_set(task="qa", **before)
    assert known(change_answers(answers, change, FACTS)) == {"task": "qa", **after}


@pytest.mark.parametrize(
    ("effort", "can"), [("answer", True), ("money", True), ("data", False), ("fixed", False)]
)
def test_only_what_can_be_answered_can_be_tried(effort, can):
    """Other data, or another task, is nothing that a person can choose now."""
    to = parse_composition("sft+lora")
    assert can_be_tried(Flip(change={"budget": "high"}, to=to, effort=effort, text="")) is can


JARGON = re.compile(
    r"\b(lora|adapter|prefix|rlhf|ppo|sft|dpo|fine-tun|finetun|quanti[sz]|token|gpu|vram|epoch"
    r"|hyperparam|gradient|checkpoint|inference|parameter|nf4|bf16|embedding|corpus|rag |llm"
    r"|supervised|reward|dataset)"
)


QUESTIONS = questions(FACTS)


@pytest.mark.parametrize("fact", QUESTIONS, ids=lambda fact: fact.id)
def test_a_newcomer_can_read_the_question(fact):
    """It has no jargon, helps with each choice, says what not knowing means, and fits 80 x 24."""
    values = fact.values.values()
    texts = [part for value in values for part in (value.label, value.help, value.such_as)]
    assert [one for one in (fact.ask, fact.unknown, *texts) if JARGON.search(one.lower())] == []
    assert not re.search(r"\bthen\b", fact.ask)
    assert all(value.help for value in values)
    assert fact.required or fact.signal or fact.unknown
    question = prompt_lines(f"12. {fact.ask} (arrow keys, Enter)", 80).splitlines()
    assert len(question) <= 2
    lines = [choice_lines(Option(value=1, label=one.label, help=one.help), 80) for one in values]
    assert not any("\n" in line for line in lines)
    assert len(question) + len(lines) + 2 <= 22  # not known, and back
    assert len(QUESTIONS) > 12


TASK = FACTS["task"]


@pytest.mark.parametrize(
    "replies",
    [
        ("Take name, date and sum out of an invoice",),  # the nearest
        ("Back", "Write code"),  # nobody is caught in the second question
        ("I don't know",),  # decides nothing; what decides then is said
    ],
    ids=" > ".join,
)
def test_not_knowing_the_task_shows_examples(approved, replies):
    """One line for each task, in words of somebody's work; not knowing then either is an answer."""
    ui = ScriptedUi("I don't know", *replies)
    answers = answers_of(ui, "none")
    assert ui.replies == []
    assert len(ui.offered[1]) == len(TASK.values) - 1 + 2  # all but `other`; not known, and back
    approved([known(answers), ui.asked, ui.said[5:], ui.offered[1][-2:], ui.helps[1][-2:]])


@pytest.mark.parametrize("name", [name for name in TASK.values if name != "other"])
def test_every_task_has_an_example(name):
    """It fits into a line of 80 columns and needs no term of the trade."""
    assert 0 < len(TASK.values[name].such_as) < 70


NUMBERS = {
    "5000": 5000, "5,000": 5000, "5 000": 5000, "5k": 5000, "5 K": 5000, "1.5k": 1500, "0": 0,
    "about 200": 200, "~2m": 2_000_000, "1,234,567": 1_234_567, "5'000": 5000,
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_people_write_them(text):
    """Thousands signs, k and m are understood."""
    assert read_number(text, FACTS["data_rows"]) == NUMBERS[text]


@pytest.mark.parametrize(
    ("text", "why"),
    [("5.000", "two ways"), ("2.5", "not a whole number")]
    + [(text, "not a number") for text in ("many", "-3", "5,00", "1e3", "nan", "10 20")],
)
def test_numbers_that_can_mean_two_things_are_not_guessed(text, why):
    """What is no number, could be two, or is too small, is asked for again with the reason."""
    with pytest.raises(ValueError, match=why):
        read_number(text, FACTS["data_rows"])
    with pytest.raises(ValueError, match="at least 1"):
        read_number("0", FACTS["n_tasks"])


def test_a_folder_without_a_model_is_refused_and_asked_for_again(tmp_path):
    """Who has a model that scores answers names its folder; another folder is told at once."""
    (tmp_path / "config.json").write_text("{}")
    ui = ScriptedUi("Be a general assistant to talk to", "Yes", str(tmp_path.parent), str(tmp_path))
    wanted = ("reward_model_available", "reward_model")
    checks = Checks(reward_model=_refused(model_folder))
    stated = AnswerSet(known={"data_kind": Answer(value="preference", origin="flag")})
    answers = answers_of(ui, *wanted, earlier=stated, checks=checks)
    assert answers.value("reward_model") == str(tmp_path)
    assert any("holds no model" in line for line in ui.said)


# Another machine, if it is not the one with the card; what is chosen and typed.
MACHINES = {"no card": CPU, "nothing known": UNKNOWN_HARDWARE}
CARDS_TYPED = (
    "Use this machine", "No GPU", "I don't know", "Another card | RTX 4090",
    "Another card | 4 x RTX 4090", "Another card | cpu", "Another card | Mystery 9000 24 GB",
    "Another card | 2x Mystery | ", "Another card | Mystery | RTX 4090", "Another card | ",
    "Another card | NVIDIA GeForce RTX 4060 Laptop GPU",
    "Another card | 3080 laptop | RTX 3080 Laptop with 16 GB",
    "Another card | M3 Max | Apple M3 Max with 64 GB", "Another card | M3 Max | I don't know",
    "Another card | 2x H100 | H100 NVL 94GB", "Another card | A100 80",
    "Another card | 4060 laptop 12GB | RTX 4060 Laptop", "Another card | < | Use this machine",
    # A machine without a card is not asked twice: "no GPU" is no choice if a probe found none,
    # "this machine" is not if nothing is known.
    "no card | I don't know", "nothing known | I don't know",
    # Typed again, by a near name or its memory, with no flag or size to copy.
    "Another card | RTX 4095 | RTX 4095 24 GB",
    # Ten thousand cards are enough for anybody.
    "Another card | 99999x RTX 4090 | RTX 4090", "Another card | RTX 4090 x 50000 | RTX 4090",
)  # fmt: skip


@pytest.mark.parametrize("typed", CARDS_TYPED)
def test_the_card_is_this_one_another_none_or_not_known(approved, typed):
    """This machine leaves it to the probe; a name, count and memory are read from one line."""
    replies = typed.split(" | ")
    hardware = MACHINES.get(replies[0], PROBED_4090)
    ui = ScriptedUi("Write texts", *(reply for reply in replies if reply not in MACHINES))
    answers = known(answers_of(ui, "gpu", hardware=hardware))
    assert not re.search("--gpu|such as", " ".join([*ui.said, *ui.asked[2:]]))
    approved([answers, ui.said[5:], ui.asked[1:], ui.offered[1:]])


@pytest.mark.parametrize("hardware", [PROBED_4090, CPU], ids=["card", "processor"])
def test_the_probe_is_shown_before_the_first_question(approved, hardware):
    """The machine comes first, in one or two lines."""
    ui = ScriptedUi("Write texts")
    answers_of(ui, "none", hardware=hardware)
    assert ui.said[: len(machine_lines(hardware))] == machine_lines(hardware)
    approved(machine_lines(hardware))


NEAR = (NamedModel(id="Qwen/Qwen3-8B", about="8.19B parameters"),)


def meant(name: str) -> NameLookup:
    """A hub of one model."""
    if name in ("Qwen/Qwen3-8B", "Qwen3-8B"):
        return NameLookup(id="Qwen/Qwen3-8B", note="read as Qwen/Qwen3-8B; 8.19B parameters")
    if name == "./empty":
        return NameLookup(note="./empty: no config.json in this folder", wrong=True)
    if name == "acme/own":
        return NameLookup(note="acme/own: the hub could not be reached")
    return NameLookup(near=NEAR if "qw" in name else (), misspelt=name == "qwn")


NAMES_TYPED = (
    # A name in another spelling becomes the hub's, and what it is read as is said.
    "Qwen3-8B",
    # Neither is a dead end: to type it again, or to leave it to a suggestion.
    "xyz | Type another name | Qwen3-8B", "xyz | I don't know",
    # One that nothing knows is kept with its size, which is asked for unless its name says it.
    "our model | Keep our model | 8B", "our model 13B | Keep our model 13B",
    # An id of the hub can be kept without a network, and why it was not found is said.
    "acme/own | Keep acme/own | ",
    # A folder that is no model is corrected at once.
    "./empty | Qwen3-8B",
    # One of several is chosen from a list; a misspelt name is called unknown.
    "qw | Qwen/Qwen3-8B", "qwn | Qwen/Qwen3-8B",
)  # fmt: skip


@pytest.mark.parametrize("typed", NAMES_TYPED)
def test_a_name_is_read_kept_or_asked_for_again(approved, typed):
    """Whatever is typed ends in a model, or in none; a list of models shows what each is."""
    ui = ScriptedUi("Write code", *typed.split(" | "))
    answers = answers_of(ui, "model", checks=Checks(models=meant))
    assert ui.replies == []
    approved([known(answers), ui.said[5:], ui.asked[1:], ui.offered[1:], ui.helps[1:]])


RULES = load_rules()
SUPPORT = {
    "task": "customer_service",
    "data_path": "support.jsonl",
    "facts_change_often": False,
    "depth": "style",
    "prompting_tried": False,
    "budget": "low",
    "gpu": "RTX 4090",
}
FILE = {"data_kind": "paired", "data_rows": 5000, "data_tokens": 800_000}
NOT_KNOWN = {
    f"fits_{scheme}": "unknown" for scheme in ("full", "lora", "qlora", "adapter", "prefix")
}


def facts_of(answers):
    """What the rules know of these answers, with a fixed file and card."""
    stated = known(answers)
    return {
        **{name: stated[name] for name in stated.keys() - {"data_path", "model", "gpu", "signals"}},
        **dict.fromkeys(answers.signals, True),
        **(FILE if "data_path" in stated else {}),
        **({"device": "gpu", "gpus": 1} if "gpu" in stated else {}),
    }


def put(replies, relevance=None):
    """Answers and questions in order, of somebody who answers so and knows nothing else."""
    return walked(replies, facts=RULES.facts, relevant=relevance or Relevance(RULES, facts_of))


def test_a_newcomer_with_examples_for_support_is_asked_ten_questions_at_most():
    """One card, little money, a file of examples: about half of what there is to ask."""
    answers, order = put(SUPPORT, Relevance(RULES, facts_of, lambda *_: NOT_KNOWN))
    assert order[:3] == ["task", "data_path", "facts_change_often"]
    assert {"model", "gpu"} <= set(order)
    assert len(order) <= 10
    assert len(order) + len(skipped_questions(RULES.facts, answers, order)) >= 15


def test_whoever_knows_nothing_is_asked_thirteen_questions_at_most():
    """Whatever the task: "I don't know" to everything else ends in an answer."""
    for task in RULES.facts["task"].values:
        relevance = Relevance(RULES, facts_of, lambda *_: NOT_KNOWN)
        order = put({"task": task}, for_now(RULES.facts, relevance))[1]
        assert len(order) <= 13, (task, order)


def test_no_more_is_asked_than_matters():
    """Without examples neither money, model nor GPU is asked for; with facts to look up, little."""
    _, order = put({"task": "generation", "data_kind": "none"})
    assert not {"budget", "model", "gpu", "serve_with", "priority"} & set(order)
    settled = {"data_kind": "raw_text", "facts_change_often": True, "prompting_tried": False}
    _, order = put({"task": "domain_expertise", **settled})
    assert order[-1] in ("prompting_tried", "teacher", "depth")
    assert len(order) <= 7


def test_who_has_a_model_that_scores_is_asked_where_it_is():
    """The stage that learns from scores reads its folder; who has none is not asked."""
    assistant = {"task": "chat_assistant", "depth": "alignment"}
    _, order = put({**assistant, "reward_model_available": True})
    assert order.index("reward_model") == order.index("reward_model_available") + 1
    assert "reward_model" not in put({**assistant, "reward_model_available": False})[1]


def test_a_question_is_asked_for_the_one_behind_it():
    """Whether instructions were tried matters only for whether they were good enough."""
    relevance, answers = Relevance(RULES, facts_of), asked_set(task="qa", data_path="x")
    opened = open_questions(RULES.facts, answers, ("task", "data_path"))
    assert relevance("prompting_tried", answers, opened)
    assert not relevance("prompting_tried", answers, frozenset({"prompting_tried"}))


def test_what_fits_is_estimated_once_everything_it_needs_is_answered():
    """It is estimated after the card, for the settled chain, and once for equal answers."""
    estimate = Mock(return_value=NOT_KNOWN)
    put(SUPPORT, Relevance(RULES, facts_of, estimate))
    calls = {(*call.args[1:], call.args[0].value("gpu")) for call in estimate.call_args_list}
    assert calls == {("sft", False, "RTX 4090")}


def test_every_way_through_the_questions_ends_as_if_all_were_asked():
    """In random situations half as many questions lead to the same composition."""
    found = list(rounds(RULES, scaled(150), seed=11))
    assert len(found) == scaled(150)
    assert [one for one in found if one.composition != one.in_full] == []
    assert sum(one.asked for one in found) < 0.65 * sum(one.of for one in found)


def test_a_question_that_waits_for_an_answer_is_open_as_long_as_the_answer_is():
    """It goes with the question it waits for, over several steps."""
    waits = {"a": {}, "b": {"a": (True,)}, "c": {"b": (True,)}}
    asked = {
        name: Fact(id=name, type="flag", origin="asked", order=place, ask=name, ask_when=when)
        for place, (name, when) in enumerate(waits.items())
    }
    assert open_questions(asked, AnswerSet(), ()) == {"a", "b", "c"}
    assert open_questions(asked, asked_set(a=False), ("a",)) == set()
    assert open_questions(asked, asked_set(a=True), ("a",)) == {"b", "c"}
    assert not may_apply(asked["b"], AnswerSet(), asked, ())


@pytest.mark.parametrize(
    ("answers", "closed"),
    [
        ({"task": "code"}, "needs_citations"),
        ({"task": "qa", "data_path": "x"}, "data_kind"),
        ({"task": "qa", "data_kind": "none"}, "data_rows"),
    ],
)
def test_a_question_that_can_no_longer_apply_is_not_open(answers, closed):
    """Neither another task's question nor one that the data file answers."""
    assert closed not in open_questions(FACTS, asked_set(**answers), tuple(answers))
