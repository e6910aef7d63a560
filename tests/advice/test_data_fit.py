"""Data that do not suit the task are noticed before anything is advised; so is a larger model to learn from,
and where general rows are mixed in against forgetting."""

import json
import re
import shlex

import pytest
from msgspec.structs import replace

from advisor import Answers
from advisor.advice.facts import situation_facts
from advisor.advice.search.settings import StageCase
from advisor.advice.types import ALONE, SHARDED
from advisor.api import advise, advise_document
from advisor.data import profile
from advisor.data.checks.answers import has_layout, is_code
from advisor.ground.errors import InputError
from advisor.methods.composition import parse_composition
from advisor.plan.read import read_plan
from advisor.render.words import what_to_do
from advisor.situation.build import situation_of
from advisor.situation.data import misfit, row_words
from advisor.situation.names import named_shape
from tests.advice.situations import RULES, asked

ASKED = "My order {0} has not arrived yet. Can you tell me where it is?"
REPLIED = "Thank you for writing. Order {0} left our warehouse and arrives in two days."
PROGRAM = "def total_{0}(rows):\n    return sum(row.price for row in rows)\n"


def write(folder, rows, name="rows"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stated(task, path, **data):
    return {"task": task, "data": {"path": path, **data}, "gpu": {"name": "RTX 4090"}}


def pairs(answer):
    return [{"question": ASKED.format(n), "answer": answer.format(n)} for n in range(300)]


ROWS = {
    "categories": [
        {"body": ASKED.format(n), "category": ("Billing", "Shipping", "Returns")[n % 3]}
        for n in range(300)
    ],
    "replies": pairs(REPLIED),
    "code": pairs(PROGRAM),
    "forms": pairs('{{"order": {0}, "city": "Bonn"}}'),
    "calls": pairs('{{"name": "find_order", "arguments": {{"number": {0}}}}}'),
    "short answers": [
        {"question": ASKED.format(n), "answer": ("spam", "no spam")[n % 2]} for n in range(300)
    ],
    "documents": [{"text": f"Chapter {n}. " + REPLIED.format(n) * 3} for n in range(300)],
    "preferences": [
        {"prompt": ASKED.format(n), "chosen": REPLIED.format(n), "rejected": f"No, {n}."}
        for n in range(300)
    ],
}
SUITED = [
    *((task, "documents") for task in ("customer_service", "qa", "domain_expertise")),
    *((task, "categories") for task in ("classification", "other", "multi_department")),
    *((task, "replies") for task in ("customer_service", "reasoning")),
    ("classification", "short answers"), ("code", "code"), ("structured_output", "forms"),
    ("tool_use", "calls"), ("chat_assistant", "preferences"),
]  # fmt: skip
UNSUITED = [
    *((task, "categories") for task in ("customer_service", "qa", "generation", "tool_use")),
    *(("classification", rows) for rows in ("documents", "replies", "preferences")),
    *((task, rows) for task in ("tool_use", "code", "structured_output")
      for rows in ("replies", "documents")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "rows"), SUITED)
def test_data_that_suit_the_task_need_no_words(tmp_path, task, rows):
    """Rows that suit the task need no words, nor do three answers, too few to be categories."""
    assert misfit(task, profile(write(tmp_path, ROWS[rows]))) is None
    assert misfit("classification", profile(write(tmp_path, ROWS["replies"][:3]))) is None


@pytest.mark.parametrize(("task", "rows"), UNSUITED)
def test_data_that_do_not_suit_the_task_are_named_with_a_row(approved, tmp_path, task, rows):
    """The first warning says what the rows hold and shows one; without a word no plan is made."""
    path = write(tmp_path, ROWS[rows])
    wrong = misfit(task, profile(path))
    document = advise_document(stated(task, path))
    assert document["warnings"][0] == f"data: {wrong.text}"
    approved([wrong.text, wrong.blocks, wrong.suits, document["missing"]])
    assert not (wrong.blocks and document["plan"])


def test_a_stated_mapping_or_force_takes_the_data_as_they_are(call, tmp_path):
    """Whoever names the columns has looked at them, and --force is a word too; the warning stays."""
    path = write(tmp_path, ROWS["categories"])
    mapping = {"text": "body", "label": "category"}
    document = advise_document(stated("customer_service", path, mapping=mapping))
    asked = ("--json", "--task", "customer_service", "--gpu", "RTX 4090", "--data", path)
    refused, forced = (json.loads(call(*asked, *more)[1]) for more in ((), ("--force",)))
    plans = [one["plan"] for one in (document, refused, forced)]
    assert [plan is not None for plan in plans] == [True, False, True]
    assert "no reply" in document["warnings"][0]


@pytest.mark.parametrize(
    ("task", "mapping"),
    [
        ("customer_service", {"question": "body", "answer": "Agent Reply"}),
        ("classification", {"text": "body", "label": "category"}),
    ],
)
def test_the_task_decides_which_columns_are_taken(tmp_path, task, mapping):
    """A table with a text, its category and a reply holds what either task needs."""
    rows = [{**row, "Agent Reply": REPLIED.format(n)} for n, row in enumerate(ROWS["categories"])]
    assert advise(stated(task, write(tmp_path, rows))).situation.data.mapping == mapping


def test_a_guess_is_pinned_in_the_plan(tmp_path):
    """A run reads the columns that the person was shown."""
    rows = [{"Frage": ASKED.format(n), "Antwort": REPLIED.format(n)} for n in range(300)]
    document = advise_document(stated("qa", write(tmp_path, rows)))
    assert document["plan"]["data"]["mapping"] == {"question": "Frage", "answer": "Antwort"}
    assert "`Frage`" in document["warnings"][0]


def test_columns_nobody_can_tell_apart_are_an_error_with_the_whole_command(tmp_path):
    """The command in the error reads the file, task and all."""
    rows = [
        {"f1": f"The tower {n} is rather high.", "f2": f"It was built in 19{n:02d} or so."}
        for n in range(20)
    ]
    path = write(tmp_path, rows, "it's mine")
    with pytest.raises(InputError) as caught:
        advise(stated("qa", path))
    command = f"advise --task qa --data {shlex.quote(path)} --map question=f1 answer=f2"
    assert command in caught.value.faults[0].hint


def test_a_folder_of_files_says_how_to_name_the_teams(tmp_path):
    """One data set, and the flags to split it; other tasks read the folder as it is."""
    folder = tmp_path / "our data"
    folder.mkdir()
    paths = {
        name: write(folder, pairs(f"{name}: {REPLIED}"), name) for name in ("hr", "it", "legal")
    }
    advice, other = (advise(stated(task, str(folder))) for task in ("multi_department", "qa"))
    assert advice.situation.tasks == {}
    (said,) = (text for text in advice.warnings if "one for each file" in text)
    quoted = [shlex.quote(f"{name}={path}") for name, path in paths.items()]
    assert all(f"--tasks {flag}" in said for flag in quoted)
    assert other.situation.data.rows == 900


@pytest.mark.parametrize(
    ("check", "text", "found"),
    [
        (is_code, PROGRAM.format(1), True),
        (is_code, "SELECT name FROM customers WHERE city = 'Bonn';", True),
        (is_code, "```python\nprint(1)\n```", True),
        (is_code, "for (int i = 0; i < n; i++) {\n  total += a[i];\n}", True),
        (is_code, "#!/bin/sh\nfor f in *.txt; do\n  echo $f;\ndone", True),
        (is_code, "const f = (x) => x + 1;\nexport default f;", True),
        (is_code, "<div class='a'>\n  <p>text</p>\n</div>;", True),
        # Letters with semicolons and brackets are prose.
        (is_code, REPLIED.format(3), False),
        (is_code, "Dear Kim,\nthank you for your order; it arrives tomorrow (before noon).\nBest", False),
        (is_code, "Use the following steps: open the menu, choose File, then Save.", False),
        (is_code, "The class of 1999 met in Bonn. Return the form by May.", False),
        # JSON, XML, tables and named lines are layouts.
        (has_layout, '{"a": 1}', True),
        (has_layout, "<a><b/></a>", True),
        (has_layout, "Name: Kim\nCity: Bonn", True),
        (has_layout, "| a | b |\n|---|---|\n| 1 | 2 |", True),
        (has_layout, "{not json}", False),
        (has_layout, REPLIED.format(3), False),
    ],
)  # fmt: skip
def test_programs_and_layouts_are_known_by_their_signs(check, text, found):
    """In several languages and formats that a program reads."""
    assert bool(check(text)) is found


def test_a_row_is_shown_shortened_on_one_line(tmp_path):
    """Line breaks and long texts do not leave their line."""
    rows = [{"question": "a\nb " * 90, "answer": f"{n}\tc"} for n in range(9)]
    found = profile(write(tmp_path, rows))
    assert "\n" not in row_words(found)
    assert len(row_words(found)) < 120
    assert row_words(found).endswith('..." -> "0 c"')
    assert row_words(replace(found, sample=None)) == "an empty row"


SUPPORT = {"task": "customer_service", "data": {"kind": "paired", "rows": 5000}, "gpu": "unknown"}
SMALL, LARGE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"
QWEN2_5 = "Qwen/Qwen2.5-{}-Instruct"
OTHER = "meta-llama/Llama-3.1-8B-Instruct"


def situation(**keys):
    return situation_of(Answers.from_dict({**SUPPORT, **keys}))


@pytest.mark.parametrize(
    ("keys", "teacher"),
    [
        ({}, None),
        ({"signals": ["teacher_available"]}, "texts"),
        ({"signals": ["teacher_logs_available"]}, "texts"),
        ({"signals": {"teacher_available": False}}, "none"),
        ({"teacher": "none"}, "none"),
        ({"teacher": "model"}, "model"),
        ({"teacher_model": LARGE, "model": SMALL}, "model"),
        ({"teacher_model": OTHER, "model": SMALL}, "texts"),
        ({"teacher_model": "Qwen/Qwen3-32B", "model": SMALL, "gpu": "T4"}, "texts"),
        ({"teacher_model": SMALL, "model": SMALL}, "none"),
        # 7B has 128 more rows in its output matrix than 0.5B, for the same tokens.
        ({"teacher_model": QWEN2_5.format("7B"), "model": QWEN2_5.format("0.5B")}, "model"),
    ],
)
def test_what_is_said_of_a_teacher_is_one_fact(keys, teacher):
    """A choice, older signals or a model's name tell it; a misfit can only write texts."""
    assert situation_facts(situation(**keys)).get("teacher") == teacher


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher_model": SMALL},
        {"teacher_model": "Qwen/Qwen3-32B", "gpu": "T4"},
        {"teacher_model": SMALL, "model": LARGE},
        {"teacher_model": "some/thing"},
        # Another vocabulary, with both sizes and what such a model is good for.
        {"teacher_model": OTHER},
    ],
    ids=["itself", "too large", "smaller", "unknown", "another vocabulary"],
)
def test_a_teacher_that_will_not_do_is_warned_of(approved, keys):
    """The model itself, one too large for the GPU even in 4 bits, a smaller one, an unknown one."""
    found = situation(**{"model": SMALL, **keys})
    warnings = (*found.warnings, *found.model_warnings)
    approved([text for text in warnings if "may mean" not in text])  # that lists near names


def test_examples_that_are_left_out_are_not_promised(tmp_path):
    """The answer names how many of the rows it trains on."""
    rows = [
        {"prompt": f"Where is order {n}?", "completion": f"On its way, {n}."} for n in range(60)
    ]
    rows[7]["completion"] = ""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = advise({**SUPPORT, "data": {"path": str(tmp_path / "a.jsonl")}, "gpu": "T4"})
    assert found.situation.data.left_out == 1
    assert "59 of 60 examples" in what_to_do(found) or not found.recommendation.composition.chain


def test_a_teacher_is_stored_in_4_bits_where_memory_is_short():
    """Qwen3-8B stands beside a student on a T4 with it, and nothing would fit without."""
    found = advise({**SUPPORT, "gpu": "T4", "model": SMALL, "teacher_model": LARGE}).recommendation
    assert str(found.composition) == "distill+lora"
    chosen = found.stages[0].reasons["teacher_quantization"]
    assert (chosen.value, chosen.rule) == ("nf4", "distill/teacher-in-4-bit")
    assert "without this it would need" in chosen.because


def test_a_teacher_to_run_leads_to_a_plan_with_it(tmp_path):
    """The estimate counts its weights, and its terms are warned of; the plan needs its name."""
    data = tmp_path / "train.jsonl"
    rows = [{"prompt": f"Where is order {number}?", "completion": f"On its way, {number}."} for
            number in range(200)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {**SUPPORT, "model": SMALL, "data": {"path": str(data)}, "gpu": "H100 80GB"}
    assert advise_document({**keys, "teacher": "model"})["missing"] == ["teacher_model"]
    found = advise_document({**keys, "teacher_model": LARGE})
    recommended, stage = found["recommendation"], found["plan"]["stages"][0]
    assert recommended["composition"] == "distill+lora"
    assert (stage["teacher"], stage["on_policy"], stage["beta"]) == (LARGE, 1.0, 1.0)
    (held,) = [one["gib"] for one in recommended["estimate"]["terms"] if one["name"] == "teacher"]
    assert held == pytest.approx(8_190_735_360 * 2 / 2**30, rel=0.01)
    assert any("allow training on its answers" in text for text in found["warnings"])


def test_requests_alone_are_enough_for_a_teacher_to_run(tmp_path):
    """Requests without answers count as no examples: only with a teacher are they learned from."""
    data = tmp_path / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Where is {n}?"}) + "\n" for n in range(60)))
    mapping = {"question": "prompt"}
    keys = {**SUPPORT, "model": SMALL, "data": {"path": str(data), "mapping": mapping}}
    found = advise_document({**keys, "teacher_model": LARGE})
    assert found["recommendation"]["composition"] == "distill+lora"
    assert (found["plan"]["data"]["mapping"], found["data"]["format"]) == (mapping, "requests")
    without = str(advise(keys).recommendation.composition)
    assert not {"distill", "grpo"} & set(re.findall(r"\w+", without))


ROWS_500 = {"rows": 500}


@pytest.mark.parametrize(
    ("composition", "changes", "value"),
    [
        ("sft+lora", {}, ROWS_500),  # few rows, read three times
        ("sft+lora", {"data_rows": 5000}, "not set"),
        ("sft+full", {"data_rows": 5000}, ROWS_500),
        ("sft+full", {"data_rows": 50_000}, "not set"),  # of which 500 answers are next to nothing
        ("sft+lora", {"data_rows": 5000, "priority": "retain_general_ability"}, ROWS_500),
        ("sft+lora", {"model": "Qwen/Qwen3-8B-Base"}, None),  # it has nothing to answer with
        ("encoder:sft+full", {"task": "classification"}, "not set"),
        ("dpo+lora", {}, "not set"),
    ],
)
def test_general_rows_are_chosen_where_forgetting_is_likely_and_they_help(
    composition, changes, value
):
    known = {"task": "qa", "model": "Qwen/Qwen3-8B", "gpu": "A100 PCIe 80GB", "data_rows": 300}
    situation = asked(**{**known, **changes})
    chosen, facts = parse_composition(composition), situation_facts(situation)

    def found(strategy):
        case = StageCase(RULES, situation, facts, chosen, chosen.chain[0], strategy)
        return case.settings().get("replay")

    alone, sharded = found(ALONE), found(SHARDED)
    assert (alone.value if alone else "not set") == value
    if alone:
        assert sharded.value is None
        why = "a base divided over GPUs answers nothing" if value else "it follows no instructions"
        assert why in sharded.because


def test_a_folder_with_a_chat_template_follows_instructions_whatever_its_name(tmp_path):
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "vocab_size": 49152,
    }  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert named_shape(str(folder))[0].instruct is None
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert named_shape(str(folder))[0].instruct is True


def test_short_rows_leave_room_for_general_questions(call, tmp_path, monkeypatch):
    """Where a base answers some itself against forgetting, a question and its answer fit too."""
    rows = [{"prompt": f"What is {one}?", "completion": f"It is {one}."} for one in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("advisor.advice.search.rows.TEMPLATE_TOKENS", 0)  # as a tokenizer counts
    asked = "--task qa --data rows.jsonl --model Qwen/Qwen3-0.6B --choose sft+lora --force"
    code, _, err = call(*asked.split(), "--gpu", "RTX 4090", "--plan", "plan.yaml")
    assert code == 0, err
    (stage,) = read_plan("plan.yaml").stages
    assert stage.options["replay"]
    assert stage.seq_len >= 128
