"""Rows as examples: what is understood, what is left out and counted; and OpenAI's fine-tuning files."""

import csv
import gzip
import json
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.data import SkippedRows, profile, read_examples, recognise
from advisor.data.example import read_turn
from advisor.data.examples import Tally
from advisor.data.measure import Depth
from advisor.ground.errors import InputError
from tests.conftest import examples
from tests.data.conftest import BOT, USER, findings, jsonl
from tests.render.test_data import page


def texts_in(path):
    """The documents of a file or folder."""
    return [example.text for example in read_examples(path)]


CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
AREA = {"name": "area", "parameters": {}}
READ = {
    # Text parts are joined, weight 0 stays, other keys of a turn travel along.
    "parts": {"messages": [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {**BOT, "weight": 0}, BOT]},
    # human, gpt, function_call and observation are the four roles; tools are wrapped.
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Hi"}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "9"}, {"from": "gpt", "value": "Hello"}],
        "tools": json.dumps([AREA])},
    # Instruction and input are one request; earlier turns come before it.
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Count.",
               "history": [["Hi", "Hello"]]},
    # A pair of texts keeps its spaces and may be trained plain.
    "pair": {"prompt": "2+2=", "completion": " 4"},
    # What chosen and rejected have in common is the request.
    "preference": {"chosen": [USER, BOT, USER, {**BOT, "content": "Yes"}],
                   "rejected": [USER, BOT, USER, {**BOT, "content": "No"}]},
    # A labelled text can be read as a class and as a turn with its answer.
    "label": {"text": "Buy", "label": 1},
}  # fmt: skip


def test_turns_after_the_last_answer_are_left_out_and_counted(tmp_path, approved):
    """A conversation ends with an answer; what follows is cut, and never without a count."""
    skipped = SkippedRows()
    read = list(read_examples(jsonl(tmp_path, [{"messages": [USER, BOT, USER]}]), skipped=skipped))
    approved([read, skipped.shortened.count, skipped.shortened.rows])
    path = jsonl(tmp_path, [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": ""}])
    with pytest.raises(InputError, match=r"1 of 2 rows: no answer to learn from \(row 2\)"):
        list(read_examples(path))


CALL = {"name": "get_stock", "arguments": {"sku": "T1"}}
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
    ("content-not-text",
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, BOT]}),
    ("content-not-text", {"messages": [{"role": "user", "content": 3}, BOT]}),
    # A call is an answer where functions are declared.
    ("content-not-text", {"prompt": "Hi", "chosen": CALL, "rejected": "Hello"}),
    ("broken-unicode", {"messages": [{"role": "user", "content": "half \ud83d"}, BOT]}),
    ("row-is-no-object", 7),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "row"), UNUSABLE, ids=[f"{index}-{case[0]}" for index, case in enumerate(UNUSABLE)]
)
def test_unusable_rows_are_counted_with_their_number(tmp_path, reason, row):
    """Every row that cannot be used is counted by reason, with its row number."""
    good = {**row, "chosen": "Hello."} if "chosen" in str(row) else {"messages": [USER, BOT]}
    path, skipped = jsonl(tmp_path, [good, good, row]), SkippedRows()
    assert [example.row for example in read_examples(path, skipped=skipped)] == [1, 2]
    assert (skipped.tallies, skipped.seen) == ({reason: Tally(1, [3])}, 3)
    assert "row 3" in skipped.lines()[0]


@pytest.mark.parametrize(
    ("bad", "refused"),
    [(5, nullcontext()), (6, pytest.raises(InputError, match="6 % of the rows cannot be used"))],
)
def test_more_than_five_percent_unusable_rows_are_refused(tmp_path, bad, refused):
    """Up to 5 % of the rows may be left out; one more is too many."""
    rows = [{"question": f"Q{index}", "answer": "" if index < bad else "A"} for index in range(100)]
    rows += [{"question": "", "answer": None}] * 30  # empty lines of a sheet are no rows
    skipped = SkippedRows()
    assert len(list(read_examples(jsonl(tmp_path, rows), skipped=skipped))) == 100 - bad
    with refused:
        skipped.raise_if_too_many("a.jsonl")


DOCUMENTS = [f"Document {index}. " + "It goes on and on. " * 20 for index in range(5)]
ARTICLES = [f"Article {index}. " + "It goes on and on. " * 80 for index in range(5)]
PROSE = "\n\n".join(f"Paragraph {index}\nwith two lines." for index in range(50))


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("\n\n".join(DOCUMENTS), DOCUMENTS),  # blocks of one long line
        ("\n".join(ARTICLES) + "\n", ARTICLES),  # a dump with one article a line
        ("One\n\ntext.\n<|endoftext|>\nAnother.\n", ["One\n\ntext.", "Another."]),
        (PROSE, [PROSE]),  # short paragraphs are parts of one text
    ],
)
def test_a_file_is_parted_where_its_documents_end(tmp_path, text, documents):
    """At blank lines, ends of lines or marks; nothing is lost."""
    (tmp_path / "a.txt").write_text(text)
    assert texts_in(tmp_path / "a.txt") == documents


def test_each_text_file_of_a_folder_is_one_document(tmp_path):
    """Files are read by name, folders below included; blank lines part none of them, marks do."""
    prose = [f"Section {index}. " + "The ward nurse writes it down. " * 20 for index in range(5)]
    texts = {"a.txt": "\n\n".join(prose), "b.md": "\n".join(line * 2 for line in prose)}
    (tmp_path / "c").mkdir()
    for name, text in {"c/d.txt": "Three\n", **texts}.items():
        (tmp_path / name).write_text(text)
    assert texts_in(tmp_path) == [*texts.values(), "Three"]
    assert [example.row for example in read_examples(tmp_path)] == [1, 2, 3]
    assert recognise(tmp_path).why.startswith("3 text files; each is one document, a long")
    (tmp_path / "a.txt").write_text("One.\n<|endoftext|>\nAnother.\n")
    assert texts_in(tmp_path)[:2] == ["One.", "Another."]


def test_a_long_text_or_row_is_read_whole(tmp_path):
    """A book is cut at paragraph ends and loses nothing; rows of megabytes are read in pieces."""
    book = "\n\n".join(f"Paragraph {index}: " + "so it went, " * 12 for index in range(1000))
    (tmp_path / "a.txt").write_text(book)
    pieces = texts_in(tmp_path / "a.txt")
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 40_000
    assert "\n\n".join(pieces) == book
    path = tmp_path / "a.json"
    rows = [{"question": "Q", "answer": "é" * 3_000_000}, {"question": "R", "answer": "B"}]
    path.write_text(json.dumps(rows))
    assert [len(example.messages[1].content) for example in read_examples(path)] == [3_000_000, 1]


def test_a_folder_with_a_training_split_leaves_the_others_out(tmp_path, approved):
    """Test and validation files stay out of the training, which is said; packed files are read."""
    for name in ("train.jsonl", "test.jsonl"):
        jsonl(tmp_path, [{"question": "Q", "answer": "A"}], name)
    (tmp_path / "README.md").write_text("# About\n")
    approved([recognise(tmp_path).notes, *read_examples(tmp_path)])
    for name in ("a.jsonl.gz", "b.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"question": "Q", "answer": "A"}\n'))
        assert len(list(read_examples(tmp_path / name))) == 1


def test_parquet_and_saved_datasets_read_like_jsonl(tmp_path):
    """The same rows in Parquet and in a folder of `datasets` give the same examples."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [{**USER, "content": f"Q{index}"}, {**BOT, "content": f"A{index}"}]}
        for index in range(20)
    ]
    expected = [example.messages for example in read_examples(jsonl(tmp_path, rows))]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    splits = datasets.DatasetDict({"train": table, "test": table.select(range(3))})
    splits.save_to_disk(tmp_path / "splits")
    for name in ("a.parquet", "saved", "splits"):
        assert [example.messages for example in read_examples(tmp_path / name)] == expected, name


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip)


@examples(1.2)
@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=8),
    st.sampled_from(["json", "jsonl", "csv", "indented"]),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, pairs, how):
    """Any text survives the way through every format."""
    path = tmp_path_factory.mktemp("any") / f"a.{'json' if how == 'indented' else how}"
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    if how == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("question", "answer"), *pairs])
    elif how == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=2 if how == "indented" else None), encoding="utf-8")
    assert [
        [(turn.role, turn.content) for turn in one.messages] for one in read_examples(path)
    ] == [[("user", question), ("assistant", answer)] for question, answer in pairs]


TYRES = {"role": "user", "content": "How many tyres are left?"}
SCHEMA = {"type": "object", "properties": {"sku": {"type": "string"}}}
FUNCTION = {"name": "get_stock", "description": "How many are left", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}


def stock_call(sku):
    function = {"name": "get_stock", "arguments": json.dumps({"sku": sku})}
    return {"id": f"call_{sku}", "type": "function", "function": function}


CALLS = {
    "no content": {"role": "assistant", "tool_calls": [stock_call("T1")]},
    "null as content": {"role": "assistant", "content": None, "tool_calls": [stock_call("T1")]},
    "two calls": {"role": "assistant", "tool_calls": [stock_call("T1"), stock_call("T2")]},
    "old spelling": {"role": "assistant", "function_call": stock_call("T1")["function"]},
}
# `functions` are wrapped as tools, and the turn of a `function` is that of a tool.


REFUSED = "I cannot do that."
OPENAI = {
    # Calls are learned with or without a content beside them, and the functions come along.
    **{name: {"messages": [TYRES, turn], "tools": [TOOL], "parallel_tool_calls": False}
       for name, turn in CALLS.items()},
    # `input` holds the turns and the functions; the preferred answer may be a stock_call.
    "pairs": {"input": {"messages": [TYRES], "tools": [TOOL], "parallel_tool_calls": True},
              "preferred_output": [CALLS["no content"]],
              "non_preferred_output": [{"role": "assistant", "content": "Many."}]},
    # A refusal is text that the assistant says.
    **{f"refusal {place}": {"messages": [TYRES, {"role": "assistant", **turn}]}
       for place, turn in enumerate((
           {"content": None, "refusal": REFUSED}, {"refusal": REFUSED},
           {"content": [{"type": "refusal", "refusal": REFUSED}]},
       ))},
}  # fmt: skip


@pytest.mark.parametrize("row", (READ | OPENAI).values(), ids=READ | OPENAI)
def test_a_row_is_read_as_its_format_means_it(tmp_path, row, approved):
    """Roles, weights, tools, requests and answers."""
    rows = [row, {"text": "Meet", "label": 0}] if "label" in row else [row]
    approved(next(read_examples(jsonl(tmp_path, rows))))


def test_old_functions_are_tools_and_the_page_names_what_a_turn_calls(tmp_path, approved):
    """Both spellings mean tools, and functions and calls count in the length of a row."""
    old = [TYRES, CALLS["old spelling"], {"role": "function", "name": "get_stock", "content": "4"}]
    path = jsonl(tmp_path, [{"messages": [*old, CALLS["two calls"]], "functions": [FUNCTION]}])
    shown = [line for line in page(path).splitlines() if "calls " in line or "on offer" in line]
    read = list(read_examples(path))
    row = {"messages": [TYRES, CALLS["no content"]]}
    bare, with_tools = (
        profile(jsonl(tmp_path, [one]), Depth(strict=False)).tokens.longest
        for one in (row, {**row, "tools": [TOOL]})
    )
    approved([shown, *read, bare, with_tools])
    assert with_tools - bare >= len(json.dumps(TOOL)) // 4 - 1


@given(
    weights=st.lists(st.sampled_from([None, 0, 1, 0.0, 1.0, "0", "1", False, True]), min_size=1),
    name=st.sampled_from([{}, {"name": "ann"}, {"refusal": None}]),
)
def test_weights_are_read_however_they_are_written(weights, name):
    """A weight of 0, in any spelling, is 0; one that is left out, null, or 1 is 1."""
    turns = [
        {"role": "assistant", "content": "Hi", **name, **({} if at is None else {"weight": at})}
        for at in weights
    ]
    read = [read_turn(turn).weight for turn in turns]
    assert read == [1.0 if at is None else float(int(at)) for at in weights]


def test_items_with_references_say_how_to_practise_on_them(tmp_path, approved):
    """The right answer may be a field of any name, so the page says how to name it."""
    rows = [
        {"messages": [TYRES], "compliant": "yes", "rule": f"section {at}", "response_format": {}}
        for at in range(5)
    ]
    path = jsonl(tmp_path, rows)
    stated = profile(path, mapping={"messages": "messages", "ground_truth": "compliant"})
    said = findings(path)
    # OpenAI's old guide left the prompt empty for texts to go on with.
    rows = [{"prompt": "", "completion": f" A story of tyre {at}."} for at in range(5)]
    found = recognise(jsonl(tmp_path, rows))
    approved([said, stated.kind, stated.objectives, found.kind, found.mapping])


NO_ROWS = {
    "jobs": {"object": "fine_tuning.job", "id": "ftjob-1", "model": "gpt-4o-mini"},
    "events": {"object": "fine_tuning.job.event", "id": "e-1", "message": "Step 1"},
    "checkpoints": {"object": "fine_tuning.job.checkpoint", "id": "c-1"},
    "files": {"object": "file", "id": "file-1", "filename": "a.jsonl"},
    "completions": {"object": "chat.completion", "id": "c-1", "choices": []},
    "batch answers": {"custom_id": "a", "response": {"body": {}}, "error": None},
    "batch requests": {"custom_id": "a", "body": {"messages": [TYRES]}},
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_what_holds_no_rows_is_refused_by_its_name(tmp_path, name, approved):
    """The error names what the file is, and where the rows are."""
    row, whole = NO_ROWS[name], tmp_path / "list.json"
    whole.write_text(json.dumps({"object": "list", "data": [row], "has_more": False}))
    said = []
    for path in (jsonl(tmp_path, [row] * 3), whole):
        with pytest.raises(InputError) as caught:
            recognise(path)
        said.append(caught.value.faults)
    approved(said)
