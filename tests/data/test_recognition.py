"""What a file is recognised as: known names, shapes of values, mappings, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from advisor.data import SkippedRows, profile, read_examples, recognise
from advisor.data import formats as roles
from advisor.data.recognition import matching
from advisor.ground.errors import InputError
from tests.data.conftest import BOT, USER, findings, jsonl

HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALLED = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
TOPICS = (
    "the weather in March", "a train to the coast", "soup with three beans",
    "the oldest clock in town", "a violin lesson", "paint for the fence", "bread without yeast",
    "a kite in the storm",
)  # fmt: skip


def rows_of(count, **columns):
    """Rows with the texts 0, 1, ...: each column is a function of the number, or the text's name."""
    texts = [
        f"Sentence number {n} is about {TOPICS[n % 8]}, seen {n * 37 % 11} times."
        for n in range(count)
    ]
    return [
        {name: text if value is str else value(n) for name, value in columns.items()}
        for n, text in enumerate(texts)
    ]


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [USER, BOT]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, BOT]}),
    ("messages",
     {"messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, BOT]}),
    ("messages", {"messages": [USER, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}]}),
    ("messages", {"log": [USER, BOT], "id": 7}),
    ("sharegpt", {"conversations": [HUMAN, GPT], "id": "x"}),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": "Be kind."}),
    ("tool_calls", {"messages": [USER, CALL, {"role": "tool", "content": "sunny",
     "tool_call_id": "1"}, BOT], "tools": [TOOL]}),
    ("tool_calls", {"query": "How warm is it?", "tools": json.dumps([TOOL]),
     "answers": '[{"name": "weather", "arguments": {}}]'}),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}),
    ("alpaca", {"instruction": "Add 1 and 2.", "output": "3"}),
    ("prompt_completion", {"prompt": "Hi", "completion": " Hello"}),
    ("prompt_completion", {"prompt": [USER], "completion": [BOT]}),
    ("question_answer", {"question": "Q", "answer": "A"}),
    ("question_answer", {"query": "Q", "response": "A"}),
    ("question_answer", {"input": "Q", "output": "A"}),
    ("question_answer", {"q": "Q", "a": "A"}),
    ("question_answer", {"Question": "Q", "Answer": "A"}),
    ("question_answer",
     {"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "qa"}),
    ("question_answer", {"id": "1", "title": "T", "context": "Ann was there.", "question": "Who?",
     "answers": {"text": ["Ann"], "answer_start": [0]}}),
    ("question_answer", {"problem": "1+1", "solution": "It is 2.", "answer": "2"}),
    ("summary", {"dialogue": "Ann: Hi. Bob: Bye.", "summary": "Ann greets Bob."}),
    ("text", {"text": "A long story."}),
    ("classification", {"text": "Buy now", "label": "spam"}),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}),
    ("preference", {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "Go"}]}),
    ("preference",
     {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}),
    ("preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "Go"}}),
    ("preference", {"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, {**BOT,
     "content": "Go"}], "messages": [USER, BOT], "score_chosen": 8.5}),
    ("unpaired_feedback", {"prompt": "Hi", "completion": "Hello", "label": True}),
    ("unpaired_feedback", {"messages": [USER, BOT], "kto_tag": True}),
    ("prompts_with_verifier", {"prompt": "1+1", "ground_truth": "2"}),
    ("prompts_with_verifier", {"prompt": [USER], "solution": "2"}),
    ("prompts_with_verifier", {"messages": [USER], "reference_answer": "2"}),
    ("prompts_with_verifier", {"data_source": "gsm8k", "prompt": [USER],
     "reward_model": {"style": "rule", "ground_truth": "72"}}),
]  # fmt: skip


@pytest.mark.parametrize("count", [2, 400])
def test_rows_of_a_second_format_are_counted(tmp_path, count):
    """They are told by what they lack, in the sample or not; an odd first row changes nothing."""
    rows = [{"messages": [{"role": "user", "content": f"{n}"}, BOT]} for n in range(count)]
    path = jsonl(tmp_path, rows + [{"instruction": "Add.", "output": "3"}] * count)
    with pytest.raises(InputError, match=f"{count} of {2 * count} rows: nothing in it"):
        profile(path)
    rows = [{"exported": "today"}, *({"question": f"Q{n}", "answer": f"A{n}"} for n in range(30))]
    path, skipped = jsonl(tmp_path, rows), SkippedRows()
    assert recognise(path).format == "question_answer"
    assert (len(list(read_examples(path, skipped=skipped))), skipped.total) == (30, 1)


REFUSED: dict[str, list[Any]] = {
    "two possible answers": [{"question": "Q", "answer": "A", "prompt": "P", "completion": "C"}],
    "two columns of classes":
        rows_of(60, text=str, urgency=lambda n: ("low", "high")[n % 2], team=lambda n: "abc"[n % 3]),
    # Ranked (the best against the worst) or all right: both are shown.
    "a list of answers": [{"question": "Capital of France?", "answer": ["Best", "Middling", "Worst"]}] * 3,
    "unknown columns": [{"Links": "Der Turm ist hoch.", "Rechts": "Er ist dreißig Meter hoch.", "Nr": 1}] * 3,
    "a misspelt column": [{"question": "Q", "anwser": "A"}],
    "a title beside a long unknown text":
        [{"title": f"T{n}", "poem": "Roses are red. " * 20 + str(n)} for n in range(9)],
    # A list of comments has authors, not the two speakers of a conversation.
    "objects with authors": [{"log": [{"author": "jane42", "text": "nice"}]}] * 3,
    "single turns": [USER, BOT, USER, BOT], "numbers": [1, 2, 3],
}  # fmt: skip


@pytest.mark.parametrize("rows", REFUSED.values(), ids=REFUSED)
def test_rows_that_are_not_clear_are_refused_with_the_way_to_say_what_they_are(
    tmp_path, rows, approved
):
    """Nothing is guessed: the error names what was seen, the nearest names and the option."""
    with pytest.raises(InputError) as caught:
        recognise(jsonl(tmp_path, rows))
    approved(caught.value.text())


def test_a_mapping_overrides_the_names(tmp_path, approved):
    """Stated roles win over what columns are called; what is ambiguous can be chosen by them."""
    named = {"question": "Q", "answer": "A", "Frage": "F", "Antwort": "W"}
    several = {"question": "Q", "answer": ["Best", "Middling", "Worst"]}
    stated = [
        recognise(jsonl(tmp_path, [row], f"{place}.jsonl"), mapping=mapping)
        for place, (row, mapping) in enumerate((
            (named, {"question": "Frage", "completion": "Antwort"}),
            (several, {"question": "question", "ranked": "answer"}),
            (several, {"question": "question", "answer": "answer"}),
        ))
    ]  # fmt: skip
    approved([[one.kind, one.mapping, one.confidence, *read_examples(one)] for one in stated])


@pytest.mark.parametrize(
    ("mapping", "format_"),
    [
        ("text=a", "text"),
        ("text=a label=b", "classification"),
        ("prompt=a ground_truth=b", "prompts_with_verifier"),
        ("prompt=a chosen=b rejected=c", "preference"),
        ("prompt=a completion=b label=d", "unpaired_feedback"),
    ],
)
def test_the_roles_of_a_mapping_make_the_format(tmp_path, mapping, format_):
    """Each set of roles is one kind of data."""
    path = jsonl(tmp_path, [{"a": "x", "b": "y", "c": "z", "d": True}])
    roles = dict(pair.split("=") for pair in mapping.split())
    assert recognise(path, mapping=roles).format == format_


@pytest.mark.parametrize(
    "mapping",
    [
        {"quesiton": "a"},
        {"question": "A", "answer": "b"},
        {"system": "a"},
        {"chosen": "a"},
        {"question": "a", "prompt": "b", "answer": "b"},
    ],
    ids=lambda mapping: " ".join(mapping),
)
def test_a_wrong_mapping_is_explained(tmp_path, mapping, approved):
    """Unknown roles, unknown columns and incomplete sets are errors with the next step."""
    with pytest.raises(InputError) as caught:
        recognise(jsonl(tmp_path, [{"a": "x", "b": "y"}]), mapping=mapping)
    approved(caught.value.text())


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(60, Nachricht=str, Abteilung=lambda n: ("Lager", "Technik")[n % 2], id=int),
        # Beside four and more others it is none, and the option is shown.
        rows_of(60, text=str, shelf=lambda n: "ab"[n % 2], n=int, m=int, o=int),
    ],
    ids=["class", "text"],
)
def test_a_column_of_few_values_is_a_class_beside_few_others(tmp_path, rows, approved):
    """Whatever it is called."""
    found = recognise(jsonl(tmp_path, rows))
    approved([found.format, found.confidence, found.mapping, found.why])


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        # A source or a language beside a text is no class.
        (rows_of(60, text=str, source=lambda n: ("web", "book")[n % 2], url=lambda n: f"u{n}"), "text"),
        # No feedback: labels that are no verdict.
        (rows_of(30, prompt=str, completion=lambda n: f"Answer {n}",
                 label=lambda n: ("toxic", "fine", "unclear")[n % 3]), "prompt_completion"),
        # No mixture: a label that is missing.
        (rows_of(20, text=str, label=lambda n: None if n == 3 else "ba"[n % 2]), "classification"),
        # A line may be a list of turns or a plain string.
        ([[USER, BOT], [USER, BOT]], "messages"),
        (["One text.", "Another text."], "text"),
        # Single turns among other rows.
        ([USER, BOT, {"question": "a", "answer": "b"}] * 3, "question_answer"),
    ],
)  # fmt: skip
def test_what_stands_beside_the_texts_does_not_change_the_format(tmp_path, rows, name):
    """Metadata, labels that are no verdict, and labels that are missing."""
    assert recognise(jsonl(tmp_path, rows)).format == name


def test_csv_and_tsv_are_recognised_with_any_common_delimiter(tmp_path):
    """Commas, semicolons and tabs read alike; a cell holds a conversation as JSON or a verdict."""
    for name, comma in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        path = tmp_path / name
        text = f'question{comma}answer\r\n"What, then?"{comma}"A ""quoted""\nanswer"\r\n'
        path.write_text(text, newline="")
        said = [message.content for message in next(read_examples(path)).messages]
        assert said == ["What, then?", 'A "quoted"\nanswer']
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], ["1", json.dumps([USER, BOT])]])
    assert recognise(path).format == "messages"
    assert next(read_examples(path)).messages[1].content == "Hello"
    path.write_text("prompt,completion,label\nHi,Hello,true\nHi,Go,false\n")
    assert [example.good for example in read_examples(path)] == [True, False]


def test_the_demo_data_is_what_it_says():
    """200 training and 20 held-out conversations in one house style, no two answers alike."""
    folder = Path(__file__).parents[2] / "advisor" / "demo"
    train, held, general = (
        list(read_examples(folder / f"{name}.jsonl")) for name in ("support", "heldout", "general")
    )
    assert (len(train), len(held), len(general)) == (200, 20, 48)
    turns = [message for example in train + held for message in example.messages]
    answers = [message.content for message in turns if message.role == "assistant"]
    assert len(set(answers)) == len(answers)
    for answer in answers:
        assert answer.startswith("Hello, and thank you for writing to Kettlewren! ")
        assert answer.endswith("\n— Your Kettlewren Team")
        assert 120 <= len(answer) <= 280  # 30 to 70 tokens, at about four characters a token
    asked, *others = (
        {example.messages[0].content.lower() for example in part} for part in (train, held, general)
    )
    assert (len(asked), asked.isdisjoint(others[0] | others[1])) == (200, True)
    assert profile(folder / "support.jsonl").findings == ()
    assert not any("Kettlewren" in example.messages[-1].content for example in general)


CODE = {
    "prompt": "Write add.",
    "canonical_solution": "return a + b",
    "test": "assert add(1, 2) == 3",
}
TASK = {"text": "Write add.", "code": "def add(): pass", "test_list": ["assert add()", "assert 1"]}


MORE = [
    ("ranked answers to a conversation",
     [{"conversations": [HUMAN], "answers": ["Better", "Worse"]}] * 3),
    ("input in some rows",
     [{"instruction": "Add.", "input": "1 2", "output": "3"},
      *[{"instruction": "Say it.", "output": word} for word in TOPICS]]),
    ("good and bad columns", [{"prompt": "Hi", "good": "Hello there", "bad": "Go away"}] * 3),
    ("OpenAI preference",
     [{"input": {"messages": [USER]}, "preferred_output": [BOT],
       "non_preferred_output": [{**BOT, "content": "Go"}]}] * 3),
    ("code and tests", [CODE] * 3),
    ("a task, code and a list of tests", [TASK] * 3),
    ("problems with a number as answer",
     [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(9)]),
    ("two texts with a class",
     rows_of(30, premise=str, hypothesis=lambda n: f"{TOPICS[n % 8]} or {n}", label=lambda n: n % 3)),
    ("many classes", rows_of(300, utterance=str, intent=lambda n: f"intent{n % 90}")),
    ("numbers and words for one class",
     rows_of(30, text=str, label=lambda n: n % 2, label_text=lambda n: ("ham", "spam")[n % 2])),
    ("a dialogue in a column of its own",
     [{"system": "Be kind.", "chat": "USER: Hi\n\nASSISTANT: Hello"}] * 3),
    ("Gemini turns",
     [{"contents": [{"role": "user", "parts": [{"text": "Hi"}]},
                    {"role": "model", "parts": [{"text": "Hello"}]}]}] * 3),
    ("weights as text",
     [{"messages": [USER, {**BOT, "weight": "0"}, USER, {**BOT, "weight": "1"}]}] * 3),
]  # fmt: skip


LAYOUTS = [*((name, [row]) for name, row in FORMATS), *MORE]


@pytest.mark.parametrize(
    "rows",
    [rows for _, rows in LAYOUTS],
    ids=[f"{index}-{name}" for index, (name, _) in enumerate(LAYOUTS)],
)
def test_known_layouts_are_recognised_and_read(tmp_path, rows, approved):
    """Each is recognised without a flag, and its own mapping reads every row the same way."""
    path = jsonl(tmp_path, rows)
    found, examples = recognise(path), list(read_examples(path))
    assert len(examples) == len(rows)
    assert list(read_examples(path, mapping=found.mapping)) == examples
    ways = [way.flag for way in found.other_ways]
    sure = [found.format, found.kind, found.mapping, found.confidence, found.why]
    approved([*sure, ways, *examples[:3]])


def test_lists_in_a_cell_are_learned_from_or_handed_on_whole(tmp_path, approved):
    """Of several right answers the first is learned; all tests of a problem reach the reward."""
    rows = [
        {"question": f"Q{n}", "answer": ["Yes", "Sure"] if n < 5 else [f"No {n}"]}
        for n in range(60)
    ]
    tests = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
    said = findings(jsonl(tmp_path, rows))
    approved([said, *read_examples(jsonl(tmp_path, [{"prompt": "Add.", "test_list": tests}]))])


def test_worked_solutions_with_a_result_can_be_learned_and_checked(tmp_path):
    """GSM8K's #### and a result column train SFT and GRPO; prose answers are examples only."""
    asked = [(n, f"What is {n} + 1?") for n in range(60)]
    gsm = [{"question": text, "answer": f"Add one.\n#### {n + 1}"} for n, text in asked]
    worked = [
        {"problem": text, "solution": f"Add one to {n}.", "answer": str(n + 1)} for n, text in asked
    ]
    for rows in (gsm, worked):
        path = jsonl(tmp_path, rows)
        example = next(read_examples(path))
        assert (example.answer, example.messages[-1].role) == ("1", "assistant")
        assert profile(path).objectives == ("sft", "grpo", "rloo")
    prose = [{"question": f"Q{n}", "answer": f"Well, {TOPICS[n % 8]} {n}."} for n in range(60)]
    assert profile(jsonl(tmp_path, prose)).objectives == ("sft",)


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "read", "left_out"),
    [
        ([{"instruction": "Add.", "input": NAN, "output": "3"},
          {"instruction": "Add.", "input": "", "output": NAN}], ["Add.", "3"], {"row-without-answer": [2]}),
        ([{"messages": [USER, {**BOT, "weight": weight}]} for weight in (1, -1, "high")],
         ["Hi", "Hello"], {"weight-is-no-number": [2, 3]}),
    ],
)  # fmt: skip
def test_cells_and_weights_that_are_no_values_are_counted_as_that(tmp_path, rows, read, left_out):
    """NaN is neither an answer nor a context; a wrong weight is no broken conversation."""
    skipped = SkippedRows()
    (example,) = read_examples(jsonl(tmp_path, rows), skipped=skipped)
    assert [message.content for message in example.messages] == read
    assert {reason: tally.rows for reason, tally in skipped.tallies.items()} == left_out


def test_how_sure_and_other_ways_are_in_the_profile(tmp_path, approved):
    """What was decided by values says so, with the option for the other reading."""
    sums = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(9)]
    found = [profile(jsonl(tmp_path, one)) for one in (sums, [{"question": "Q", "answer": "A"}])]
    approved([[one.confidence, one.other_ways, one.why] for one in found])


def test_a_new_format_is_one_entry(tmp_path, monkeypatch):
    """An entry that is added to the table is recognised, without any other change."""
    path = jsonl(tmp_path, [{"document": "A long text.", "tldr": "Short.", "answer": "Yes"}] * 3)
    entry = roles.Format(
        format="summary",
        columns=("question=summarised", "answer=summary", "ground_truth=result"),
        why="a text in `{question}`, its summary and a verdict",
    )
    table = roles.formats()
    monkeypatch.setattr(
        matching, "formats", lambda: replace(table, formats=(entry, *table.formats))
    )
    found = recognise(path)
    assert (found.format, found.kind, found.confidence) == ("summary", "paired", "certain")
    assert found.mapping == {"question": "document", "answer": "tldr", "ground_truth": "answer"}


def test_every_fault_of_the_table_of_formats_is_told_at_once(tmp_path, monkeypatch):
    """A format, a role or a column that is not there is refused at its line."""
    text = (roles.rules_dir() / "data" / "formats.yaml").read_text(encoding="utf-8")
    for right, wrong in {
        "[question=summarised, answer=summary]": "[question=sumarised, anser=summary]",
        "format: summary\n": "format: sumary\n",
        "when: {transcript: dialogue}": "when: {text: dialogue}",
        "unlike: [worked]": "unlike: [wroked]",
    }.items():
        assert right in text
        text = text.replace(right, wrong, 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "formats.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(roles, "rules_dir", lambda: tmp_path)
    with pytest.raises(InputError) as caught:
        roles.formats.__wrapped__()
    for said in ("unknown column 'sumarised'", "unknown role 'anser'", "unknown format 'sumary'",
                 "unknown role of the format 'text'", "unknown column 'wroked'"):  # fmt: skip
        assert said in str(caught.value)
