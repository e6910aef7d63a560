"""Rows as examples: what is understood, what is left out and counted."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.data import SkippedRows, read_examples, recognise
from advisor.data.examples import Tally
from advisor.ground.errors import InputError
from tests.conftest import examples
from tests.data.conftest import jsonl

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def spoken(messages: tuple[Any, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_parts_weights_and_names_of_messages_are_kept(tmp_path):
    """Text parts are joined, weight 0 stays, other keys of a turn travel along."""
    row = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
                "name": "ann",
            },
            {**BOT, "weight": 0},
            BOT,
        ]
    }
    messages = next(read_examples(jsonl(tmp_path, [row]))).messages
    assert spoken(messages) == [
        ("system", "Be kind."),
        ("user", "AB"),
        ("assistant", "Hello"),
        ("assistant", "Hello"),
    ]
    assert [message.weight for message in messages] == [1, 1, 0, 1]
    assert messages[1].extra == {"name": "ann"}


def test_sharegpt_speakers_and_calls_become_roles(tmp_path):
    """human, gpt, function_call and observation are the four roles."""
    row = {
        "conversations": [
            {"from": "human", "value": "How warm?"},
            {
                "from": "function_call",
                "value": '{"name": "weather", "arguments": {"city": "Oslo"}}',
            },
            {"from": "observation", "value": "9"},
            {"from": "gpt", "value": "Nine degrees."},
        ]
    }
    messages = next(read_examples(jsonl(tmp_path, [row]))).messages
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1].extra["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    ]


def test_tools_are_wrapped_as_chat_templates_expect(tmp_path):
    """Tools written as JSON text and without their wrapping come out as functions."""
    row = {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        "tools": json.dumps([{"name": "area", "parameters": {}}]),
    }
    assert next(read_examples(jsonl(tmp_path, [row]))).tools == (
        {"type": "function", "function": {"name": "area", "parameters": {}}},
    )


def test_alpaca_input_follows_the_instruction_and_history_precedes_it(tmp_path):
    """Instruction and input are one request; earlier turns come before it."""
    row = {
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
        "system": "Count.",
        "history": [["Hi", "Hello"]],
    }
    example = next(read_examples(jsonl(tmp_path, [row])))
    assert spoken(example.messages) == [
        ("system", "Count."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n\n1 2"),
        ("assistant", "3"),
    ]
    assert not example.plain


def test_prompt_and_completion_as_text_may_be_trained_plain(tmp_path):
    """A pair of texts keeps its spaces and is marked as plain."""
    example = next(read_examples(jsonl(tmp_path, [{"prompt": "2+2=", "completion": " 4"}])))
    assert (spoken(example.messages), example.plain) == (
        [("user", "2+2="), ("assistant", " 4")],
        True,
    )


def test_whole_conversations_of_a_preference_share_their_prompt(tmp_path):
    """What chosen and rejected have in common is the request."""
    row = {
        "chosen": [USER, BOT, USER, {**BOT, "content": "Yes"}],
        "rejected": [USER, BOT, USER, {**BOT, "content": "No"}],
    }
    example = next(read_examples(jsonl(tmp_path, [row])))
    assert (len(example.messages), spoken(example.chosen), spoken(example.rejected)) == (
        3,
        [("assistant", "Yes")],
        [("assistant", "No")],
    )


def test_labels_are_text_and_a_conversation(tmp_path):
    """A labelled text can be read as a class and as a turn with its answer."""
    example = next(
        read_examples(jsonl(tmp_path, [{"text": "Buy", "label": 1}, {"text": "Meet", "label": 0}]))
    )
    assert (example.text, example.label, spoken(example.messages)) == (
        "Buy",
        "1",
        [("user", "Buy"), ("assistant", "1")],
    )


def test_turns_after_the_last_answer_are_left_out_and_counted(tmp_path):
    """A conversation ends with an answer; what follows is cut and counted."""
    skipped = SkippedRows()
    [example] = read_examples(jsonl(tmp_path, [{"messages": [USER, BOT, USER]}]), skipped=skipped)
    assert len(example.messages) == 2
    assert (skipped.shortened.count, skipped.shortened.rows) == (1, [1])


UNUSABLE: list[tuple[str, Any]] = [
    ("row-without-answer", {"messages": [USER]}),
    ("row-without-answer", {"messages": [USER, {**BOT, "content": "  "}]}),
    ("row-without-answer", {"messages": [USER, {**BOT, "weight": 0}]}),
    ("empty-row", {"messages": []}),
    ("empty-row", {"messages": None}),
    ("empty-row", {}),
    ("broken-conversation", {"messages": ["Hi", "Hello"]}),
    ("broken-conversation", {"messages": [{"who": "me"}]}),
    ("unknown-role", {"messages": [USER, {"role": "wizard", "content": "x"}]}),
    (
        "content-not-text",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, BOT]},
    ),
    ("content-not-text", {"messages": [{"role": "user", "content": 3}, BOT]}),
    ("broken-unicode", {"messages": [{"role": "user", "content": "half \ud83d"}, BOT]}),
    ("row-is-no-object", 7),
]


@pytest.mark.parametrize(
    ("reason", "row"), UNUSABLE, ids=[f"{index}-{case[0]}" for index, case in enumerate(UNUSABLE)]
)
def test_unusable_rows_are_counted_with_their_number(tmp_path, reason, row):
    """Every row that cannot be used is counted by reason, with its row number."""
    path = jsonl(tmp_path, [{"messages": [USER, BOT]}] * 2 + [row])
    skipped = SkippedRows()
    assert [example.row for example in read_examples(path, skipped=skipped)] == [1, 2]
    assert (skipped.tallies, skipped.seen) == ({reason: Tally(1, [3])}, 3)
    assert "row 3" in skipped.lines()[0]


def test_without_a_counter_an_unusable_row_is_an_error(tmp_path):
    """Nobody who forgets to count loses rows silently."""
    path = jsonl(tmp_path, [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": ""}])
    with pytest.raises(InputError, match=r"1 of 2 rows: no answer to learn from \(row 2\)"):
        list(read_examples(path))


@pytest.mark.parametrize(("bad", "refused"), [(5, False), (6, True)])
def test_more_than_five_percent_unusable_rows_are_refused(tmp_path, bad, refused):
    """Up to 5 % of the rows may be left out; one more is too many."""
    rows = [{"question": f"Q{index}", "answer": "" if index < bad else "A"} for index in range(100)]
    skipped = SkippedRows()
    assert len(list(read_examples(jsonl(tmp_path, rows), skipped=skipped))) == 100 - bad
    assert skipped.are_too_many is refused
    if refused:
        with pytest.raises(InputError, match="6 % of the rows cannot be used"):
            skipped.raise_if_too_many("a.jsonl")


def test_windows_files_read_like_others(tmp_path):
    """A byte order mark and CRLF leave no trace."""
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "Q", "answer": "A"}\r\n\r\n{"question": "R", "answer": "B"}\r\n'
    )
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\r\nQ,A\r\nR,B\r\n")
    (tmp_path / "c.json").write_bytes(
        b'\xef\xbb\xbf[\r\n{"question": "Q", "answer": "A"},\r\n{"question": "R", "answer":'
        b' "B"}\r\n]\r\n'
    )
    read = [
        [spoken(example.messages) for example in read_examples(tmp_path / name)]
        for name in ("a.jsonl", "b.csv", "c.json")
    ]
    assert (
        read[0]
        == read[1]
        == read[2]
        == [[("user", "Q"), ("assistant", "A")], [("user", "R"), ("assistant", "B")]]
    )
    assert [example.row for example in read_examples(tmp_path / "a.jsonl")] == [1, 3]


def test_gzipped_files_read_like_others(tmp_path):
    """A packed file is unpacked on the way, whatever its ending says."""
    content = b'{"question": "Q", "answer": "A"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(content))
    assert (
        len(list(read_examples(tmp_path / "a.jsonl.gz")))
        == len(list(read_examples(tmp_path / "b.jsonl")))
        == 1
    )


def test_documents_of_a_corpus_are_parted_by_blank_lines(tmp_path):
    """Long one-line blocks are documents."""
    documents = [f"Document {index}. " + "It goes on and on. " * 20 for index in range(5)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents) + "\n")
    assert [example.text for example in read_examples(tmp_path / "a.txt")] == documents


def test_each_text_file_of_a_folder_is_one_document(tmp_path):
    """Paragraphs on one line each, as Word saves them, do not become documents."""
    prose = [f"Section {index}. " + "The ward nurse writes it down. " * 20 for index in range(5)]
    texts = {"a.txt": "\n\n".join(prose), "b.txt": "\n".join(line * 2 for line in prose)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert [example.text for example in read_examples(tmp_path)] == list(texts.values())
    assert recognise(tmp_path).why == "2 text files; each is one document"


def test_marks_part_the_documents_of_a_file_in_a_folder(tmp_path):
    """Marks are what a writer meant, whatever stands beside the file."""
    (tmp_path / "a.txt").write_text("One.\n<|endoftext|>\nAnother.\n")
    (tmp_path / "b.txt").write_text("Third.")
    assert [example.text for example in read_examples(tmp_path)] == ["One.", "Another.", "Third."]


def test_lines_as_long_as_articles_are_documents(tmp_path):
    """A dump with one article a line has one document a line."""
    articles = [f"Article {index}. " + "It goes on and on. " * 80 for index in range(5)]
    (tmp_path / "a.txt").write_text("\n".join(articles) + "\n")
    assert [example.text for example in read_examples(tmp_path / "a.txt")] == articles


def test_paragraphs_of_prose_stay_one_document(tmp_path):
    """Short paragraphs are parts of one text, of which nothing is lost."""
    prose = "\n\n".join(f"Paragraph {index}\nwith two lines." for index in range(50))
    (tmp_path / "a.txt").write_text(prose)
    assert [example.text for example in read_examples(tmp_path / "a.txt")] == [prose]


def test_a_long_text_comes_in_pieces_that_make_the_whole(tmp_path):
    """A book is handed on in pieces cut at paragraph ends; together they are the book."""
    book = "\n\n".join(f"Paragraph {index}: " + "so it went, " * 12 for index in range(1000))
    (tmp_path / "a.txt").write_text(book)
    pieces = [example.text or "" for example in read_examples(tmp_path / "a.txt")]
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 40_000
    assert "\n\n".join(pieces) == book


def test_marked_documents_are_parted_at_their_marks(tmp_path):
    """Lines such as <|endoftext|> part documents and are no text."""
    (tmp_path / "a.txt").write_text("One\n\ntext.\n<|endoftext|>\nAnother.\n")
    assert [example.text for example in read_examples(tmp_path / "a.txt")] == [
        "One\n\ntext.",
        "Another.",
    ]


def test_a_folder_of_texts_is_one_document_a_file(tmp_path):
    """Files of a folder are read in the order of their names, folders below included."""
    (tmp_path / "b.md").write_text("# Two\n")
    (tmp_path / "a.txt").write_text("One\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("Three\n")
    assert [(example.row, example.text) for example in read_examples(tmp_path)] == [
        (1, "One"),
        (2, "# Two"),
        (3, "Three"),
    ]


def test_a_folder_with_a_training_split_leaves_the_others_out(tmp_path):
    """Test and validation files are kept out of the training, and that is said."""
    from advisor.data import recognise

    for name in ("train.jsonl", "test.jsonl", "README.md"):
        (tmp_path / name).write_text(
            '{"question": "Q", "answer": "A"}\n' if name != "README.md" else "# About\n"
        )
    assert len(list(read_examples(tmp_path))) == 1
    assert any("test.jsonl" in note for note in recognise(tmp_path).notes)
    assert any("README.md" in note for note in recognise(tmp_path).notes)


def test_parquet_and_saved_datasets_read_like_jsonl(tmp_path):
    """The same rows in Parquet and in a folder of `datasets` give the same examples."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Q{index}"},
                {"role": "assistant", "content": f"A{index}"},
            ]
        }
        for index in range(20)
    ]
    expected = [example.messages for example in read_examples(jsonl(tmp_path, rows))]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(
        tmp_path / "splits"
    )
    for name in ("a.parquet", "saved", "splits"):
        assert [example.messages for example in read_examples(tmp_path / name)] == expected, name


def test_a_row_larger_than_the_window_is_read_whole(tmp_path):
    """Rows of several megabytes in a list are put together across reads."""
    rows = [{"question": "Q", "answer": "é" * 3_000_000}, {"question": "R", "answer": "B"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [len(example.messages[1].content) for example in read_examples(tmp_path / "a.json")] == [
        3_000_000,
        1,
    ]


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text.strip() != ""
)


@examples(1.2)
@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=8),
    st.sampled_from(["json", "jsonl", "csv", "indented"]),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, pairs, how):
    """Any text survives the way through every format."""
    import csv

    path = tmp_path_factory.mktemp("any") / f"a.{'json' if how == 'indented' else how}"
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    if how == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, ["question", "answer"]).writeheader()
            csv.DictWriter(file, ["question", "answer"], quoting=csv.QUOTE_ALL).writerows(rows)
    elif how == "jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    else:
        path.write_text(json.dumps(rows, indent=2 if how == "indented" else None), encoding="utf-8")
    assert [spoken(example.messages) for example in read_examples(path)] == [
        [("user", question), ("assistant", answer)] for question, answer in pairs
    ]
