"""What a file is recognised as: known names, shapes of values, mappings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advisor.data import Skipped, profile, read_examples, recognise
from advisor.errors import InputError

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}
TOPICS = (
    "the weather in March",
    "a train to the coast",
    "soup with three beans",
    "the oldest clock in town",
    "a violin lesson",
    "paint for the fence",
    "bread without yeast",
    "a kite in the storm",
)


def jsonl(folder: Path, rows: list[Any], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(count: int) -> list[str]:
    return [f"Sentence number {index} is about {TOPICS[index % 8]}, seen {index * 37 % 11} times." for index in range(count)]


FORMATS: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("messages", "paired", {"messages": [USER, BOT]}, {"messages": "messages"}),
    ("messages", "paired", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, BOT]}, {"messages": "messages"}),
    ("messages", "paired", {"messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, BOT]}, {"messages": "messages"}),
    ("messages", "paired", {"messages": [USER, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}]}, {"messages": "messages"}),
    ("messages", "paired", {"log": [USER, BOT], "id": 7}, {"messages": "log"}),
    ("sharegpt", "paired", {"conversations": [HUMAN, GPT], "id": "x"}, {"messages": "conversations"}),
    ("sharegpt", "paired", {"conversations": [HUMAN, GPT], "system": "Be kind."}, {"messages": "conversations", "system": "system"}),
    (
        "tool_calls",
        "paired",
        {"messages": [USER, CALL, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, BOT], "tools": [TOOL]},
        {"messages": "messages", "tools": "tools"},
    ),
    (
        "tool_calls",
        "paired",
        {"query": "How warm is it?", "tools": json.dumps([TOOL]), "answers": '[{"name": "weather", "arguments": {}}]'},
        {"question": "query", "answer": "answers", "tools": "tools"},
    ),
    ("alpaca", "paired", {"instruction": "Add.", "input": "1 2", "output": "3"}, {"question": "instruction", "context": "input", "answer": "output"}),
    ("alpaca", "paired", {"instruction": "Add 1 and 2.", "output": "3"}, {"question": "instruction", "answer": "output"}),
    ("prompt_completion", "paired", {"prompt": "Hi", "completion": " Hello"}, {"question": "prompt", "answer": "completion"}),
    ("prompt_completion", "paired", {"prompt": [USER], "completion": [BOT]}, {"question": "prompt", "answer": "completion"}),
    ("question_answer", "paired", {"question": "Q", "answer": "A"}, {"question": "question", "answer": "answer"}),
    ("question_answer", "paired", {"query": "Q", "response": "A"}, {"question": "query", "answer": "response"}),
    ("question_answer", "paired", {"input": "Q", "output": "A"}, {"question": "input", "answer": "output"}),
    ("question_answer", "paired", {"q": "Q", "a": "A"}, {"question": "q", "answer": "a"}),
    ("question_answer", "paired", {"Question": "Q", "Answer": "A"}, {"question": "Question", "answer": "Answer"}),
    (
        "question_answer",
        "paired",
        {"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "qa"},
        {"question": "instruction", "context": "context", "answer": "response"},
    ),
    (
        "question_answer",
        "paired",
        {"id": "1", "title": "T", "context": "Ann was there.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}},
        {"question": "question", "context": "context", "answer": "answers"},
    ),
    ("question_answer", "paired", {"problem": "1+1", "solution": "It is 2.", "answer": "2"}, {"question": "problem", "answer": "solution", "ground_truth": "answer"}),
    ("summary", "paired", {"dialogue": "Ann: Hi. Bob: Bye.", "summary": "Ann greets Bob."}, {"question": "dialogue", "answer": "summary"}),
    ("text", "raw_text", {"text": "A long story."}, {"text": "text"}),
    ("classification", "paired", {"text": "Buy now", "label": "spam"}, {"text": "text", "label": "label"}),
    ("preference", "preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, {"question": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ("preference", "preference", {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "Go"}]}, {"chosen": "chosen", "rejected": "rejected"}),
    ("preference", "preference", {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}, {"chosen": "chosen", "rejected": "rejected"}),
    (
        "preference",
        "preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "Go"}},
        {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    ),
    (
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "Go"}], "messages": [USER, BOT], "score_chosen": 8.5},
        {"question": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    ("unpaired_feedback", "unpaired_feedback", {"prompt": "Hi", "completion": "Hello", "label": True}, {"question": "prompt", "answer": "completion", "good": "label"}),
    ("unpaired_feedback", "unpaired_feedback", {"messages": [USER, BOT], "kto_tag": True}, {"messages": "messages", "good": "kto_tag"}),
    ("prompts_with_verifier", "prompts_with_verifier", {"prompt": "1+1", "ground_truth": "2"}, {"question": "prompt", "ground_truth": "ground_truth"}),
    ("prompts_with_verifier", "prompts_with_verifier", {"prompt": [USER], "solution": "2"}, {"question": "prompt", "ground_truth": "solution"}),
    ("prompts_with_verifier", "prompts_with_verifier", {"messages": [USER], "reference_answer": "2"}, {"messages": "messages", "ground_truth": "reference_answer"}),
    (
        "prompts_with_verifier",
        "prompts_with_verifier",
        {"data_source": "gsm8k", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "72"}},
        {"question": "prompt", "ground_truth": "reward_model"},
    ),
]


@pytest.mark.parametrize(("name", "kind", "row", "mapping"), FORMATS, ids=[f"{index}-{case[0]}" for index, case in enumerate(FORMATS)])
def test_known_formats_are_recognised(tmp_path, name, kind, row, mapping):
    """Every common layout is recognised from a single row, with its columns."""
    found = recognise(jsonl(tmp_path, [row]))
    assert (found.format, found.kind, dict(found.mapping)) == (name, kind, mapping)


@pytest.mark.parametrize(("name", "kind", "row", "mapping"), FORMATS, ids=[f"{index}-{case[0]}" for index, case in enumerate(FORMATS)])
def test_every_recognised_row_can_be_read(tmp_path, name, kind, row, mapping):
    """What is recognised gives an example, and the mapping of the recognition gives the same one."""
    path = jsonl(tmp_path, [row])
    first = list(read_examples(path))
    assert len(first) == 1
    again = list(read_examples(path, mapping=recognise(path).mapping))
    assert again == first


def test_a_list_and_a_wrapped_list_are_the_same_data(tmp_path):
    """[...], {"data": [...]} and one object a line hold the same rows."""
    rows = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(5)]
    jsonl(tmp_path, rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    read = [[example.messages for example in read_examples(tmp_path / name)] for name in ("a.jsonl", "b.json", "c.json")]
    assert read[0] == read[1] == read[2]


def test_optional_columns_may_be_missing_in_some_rows(tmp_path):
    """Rows with and without `input` are one format."""
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, *({"instruction": f"Say {word}.", "output": word} for word in TOPICS)]
    assert dict(recognise(jsonl(tmp_path, rows)).mapping) == {"question": "instruction", "context": "input", "answer": "output"}


def test_a_sample_decides_not_the_first_row(tmp_path):
    """An odd first row does not change what the file is."""
    rows: list[Any] = [{"exported": "today"}, *({"question": f"Q{index}", "answer": f"A{index}"} for index in range(30))]
    found = recognise(jsonl(tmp_path, rows))
    assert found.format == "question_answer"
    skipped = Skipped()
    assert len(list(read_examples(tmp_path / "a.jsonl", skipped=skipped))) == 30
    assert skipped.total == 1


def test_mixed_formats_are_refused_with_both_named(tmp_path):
    """Two formats in one file are an error that counts both."""
    rows = [{"messages": [USER, BOT]}] * 3 + [{"instruction": "Add.", "output": "3"}] * 2
    with pytest.raises(InputError, match=r"3 messages, 2 alpaca") as caught:
        recognise(jsonl(tmp_path, rows))
    assert "--map" in str(caught.value)


def test_a_second_format_deep_in_a_large_file_is_seen(tmp_path):
    """Rows from further down a large file are looked at too."""
    rows = [{"question": f"Q{index}", "answer": "A" * 50} for index in range(2000)] + [{"messages": [USER, BOT]}] * 2000
    with pytest.raises(InputError, match="different formats"):
        recognise(jsonl(tmp_path, rows))


def test_rows_that_lack_the_answer_are_no_second_format(tmp_path):
    """A text whose label is missing does not turn a labelled file into a mixture."""
    rows = [{"text": text, "label": "a" if index % 2 else "b"} for index, text in enumerate(texts(20))]
    rows[3]["label"] = None
    assert recognise(jsonl(tmp_path, rows)).format == "classification"


def test_two_possible_answers_are_refused_with_the_flags(tmp_path):
    """Two pairs of columns could both be meant: both are shown, each with its option."""
    with pytest.raises(InputError) as caught:
        recognise(jsonl(tmp_path, [{"question": "Q", "answer": "A", "prompt": "P", "completion": "C"}]))
    assert "--map question=question answer=answer" in str(caught.value)
    assert "--map question=prompt answer=completion" in str(caught.value)


def test_unknown_columns_are_named_with_the_way_to_map_them(tmp_path):
    """No known column: the error names those seen, the nearest format and the option."""
    with pytest.raises(InputError) as caught:
        recognise(jsonl(tmp_path, [{"Frage": "Wie hoch ist der Turm?", "Antwort": "Er ist dreißig Meter hoch.", "Nr": 1}] * 3))
    text = str(caught.value)
    assert "Frage (text), Antwort (text), Nr (number)" in text
    assert "nearest: question_answer" in text
    assert "--map question=Frage answer=Antwort" in text
    assert "--map question=COL answer=COL" in text


def test_a_misspelt_column_gets_its_nearest_name(tmp_path):
    """`anwser` is answered with 'answer'."""
    with pytest.raises(InputError, match="did you mean 'answer'"):
        recognise(jsonl(tmp_path, [{"question": "Q", "anwser": "A"}]))


def test_a_mapping_overrides_the_names(tmp_path):
    """Stated roles win over what columns are called."""
    path = jsonl(tmp_path, [{"question": "Q", "answer": "A", "Frage": "F", "Antwort": "W"}])
    found = recognise(path, mapping={"question": "Frage", "completion": "Antwort"})
    assert (dict(found.mapping), found.confidence) == ({"question": "Frage", "answer": "Antwort"}, "stated")
    assert [message.content for message in next(read_examples(path, recognition=found)).messages] == ["F", "W"]


@pytest.mark.parametrize(
    ("mapping", "format_"),
    [
        ({"text": "a"}, "text"),
        ({"text": "a", "label": "b"}, "classification"),
        ({"prompt": "a", "ground_truth": "b"}, "prompts_with_verifier"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": "a", "completion": "b", "label": "d"}, "unpaired_feedback"),
    ],
)
def test_the_roles_of_a_mapping_make_the_format(tmp_path, mapping, format_):
    """Each set of roles is one kind of data."""
    assert recognise(jsonl(tmp_path, [{"a": "x", "b": "y", "c": "z", "d": True}]), mapping=mapping).format == format_


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"quesiton": "a"}, "did you mean 'question'"),
        ({"question": "A", "answer": "b"}, "did you mean 'a'"),
        ({"question": "a"}, "makes no known format"),
        ({"chosen": "a"}, "names no column for 'rejected'"),
        ({"question": "a", "prompt": "b", "answer": "b"}, "two columns for the role"),
    ],
)
def test_a_wrong_mapping_is_explained(tmp_path, mapping, says):
    """Unknown roles, unknown columns and incomplete sets are errors with the next step."""
    with pytest.raises(InputError) as caught:
        recognise(jsonl(tmp_path, [{"a": "x", "b": "y"}]), mapping=mapping)
    assert says in str(caught.value)


def test_labels_are_found_whatever_their_column_is_called(tmp_path):
    """A text beside a column of few distinct values is classification."""
    rows = [{"Nachricht": text, "Abteilung": ("Lager", "Verkauf", "Technik")[index % 3], "id": index} for index, text in enumerate(texts(60))]
    found = recognise(jsonl(tmp_path, rows))
    assert (found.format, dict(found.mapping), found.confidence) == ("classification", {"text": "Nachricht", "label": "Abteilung"}, "likely")


def test_two_columns_of_few_values_are_ambiguous(tmp_path):
    """Which of two class columns is meant is not guessed."""
    rows = [{"text": text, "urgency": ("low", "high")[index % 2], "team": ("a", "b", "c")[index % 3]} for index, text in enumerate(texts(60))]
    with pytest.raises(InputError, match="2 ways"):
        recognise(jsonl(tmp_path, rows))


def test_texts_with_metadata_are_texts(tmp_path):
    """A source or a language beside a text is no class."""
    rows = [{"text": text, "source": ("web", "book")[index % 2], "url": f"u{index}"} for index, text in enumerate(texts(60))]
    assert recognise(jsonl(tmp_path, rows)).format == "text"


def test_a_text_with_many_remarks_is_a_text(tmp_path):
    """Beside four and more other columns a column of few values is no class; the option to say otherwise is shown."""
    rows = [{"text": text, "shelf": ("a", "b")[index % 2], "n": index, "m": index, "o": index} for index, text in enumerate(texts(60))]
    found = recognise(jsonl(tmp_path, rows))
    assert (found.format, found.confidence) == ("text", "likely")
    assert "--map text=text label=shelf" in found.why


def test_prompts_with_a_class_label_beside_the_answer_are_pairs(tmp_path):
    """A `label` that is no verdict does not make feedback."""
    rows = [{"prompt": text, "completion": f"Answer {index}", "label": ("toxic", "fine", "unclear")[index % 3]} for index, text in enumerate(texts(30))]
    assert recognise(jsonl(tmp_path, rows)).format == "prompt_completion"


def test_written_dialogues_become_turns(tmp_path):
    """Texts with speakers at the start of each turn are conversations."""
    rows = [{"text": f"### Human: {text}### Assistant: Yes, {index}."} for index, text in enumerate(texts(10))]
    path = jsonl(tmp_path, rows)
    assert recognise(path).format == "transcript"
    assert [message.role for message in next(read_examples(path)).messages] == ["user", "assistant"]


def test_lines_that_are_conversations_or_texts_themselves_are_read(tmp_path):
    """A line may be a list of turns or a plain string."""
    assert recognise(jsonl(tmp_path, [[USER, BOT], [USER, BOT]])).format == "messages"
    assert recognise(jsonl(tmp_path, ["One text.", "Another text."], "b.jsonl")).format == "text"


def test_single_turns_are_not_taken_for_rows(tmp_path):
    """A file with one turn a row is told to gather its conversations."""
    with pytest.raises(InputError, match="each row is a single turn"):
        recognise(jsonl(tmp_path, [USER, BOT, USER, BOT]))


def test_rows_of_numbers_are_refused(tmp_path):
    """Rows that are no objects say what they are."""
    with pytest.raises(InputError, match="the rows are numbers"):
        recognise(jsonl(tmp_path, [1, 2, 3]))


def test_csv_and_tsv_are_recognised_with_any_common_delimiter(tmp_path):
    """Comma, semicolon and tab files read alike."""
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        (tmp_path / name).write_text(f'question{delimiter}answer\r\n"What, then?"{delimiter}"A ""quoted""\nanswer"\r\n', newline="")
        example = next(read_examples(tmp_path / name))
        assert [message.content for message in example.messages] == ["What, then?", 'A "quoted"\nanswer']


def test_csv_cells_may_hold_conversations_as_json(tmp_path):
    """A messages column written as JSON text into a CSV is understood."""
    import csv

    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], ["1", json.dumps([USER, BOT])]])
    assert recognise(tmp_path / "a.csv").format == "messages"
    assert next(read_examples(tmp_path / "a.csv")).messages[1].content == "Hello"


def test_verdicts_in_csv_may_be_words(tmp_path):
    """Thumbs up and down come as true/false, yes/no or 1/0 in a CSV."""
    (tmp_path / "a.csv").write_text("prompt,completion,label\nHi,Hello,true\nHi,Go,false\n")
    assert [example.good for example in read_examples(tmp_path / "a.csv")] == [True, False]


def test_the_demo_data_is_what_it_says():
    """200 training and 20 held-out conversations in one house style, no two answers alike."""
    folder = Path(__file__).parents[2] / "advisor" / "demo"
    train, held = list(read_examples(folder / "support.jsonl")), list(read_examples(folder / "heldout.jsonl"))
    assert (len(train), len(held)) == (200, 20)
    answers = [message.content for example in train + held for message in example.messages if message.role == "assistant"]
    assert len(set(answers)) == len(answers)
    assert all(answer.startswith("Hello, and thank you for writing to Kettlewren! ") and answer.endswith("\n— Your Kettlewren Team") for answer in answers)
    # 30 to 70 tokens, at about four characters a token.
    assert all(120 <= len(answer) <= 280 for answer in answers)
    questions = [example.messages[0].content.lower() for example in train]
    assert len(set(questions)) == 200
    assert not set(questions) & {example.messages[0].content.lower() for example in held}
    assert profile(folder / "support.jsonl").findings == ()
