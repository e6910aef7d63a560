"""`advise check DATA --show-row N`: a row as the trainers see it."""

import io
import json

import pytest
from rich.console import Console

from advisor.render.check_page import print_row
from tests.trainers.runs import chat, write_rows
from trainers.tools.show_row import show_row


@pytest.fixture
def data(tmp_path):
    rows = [chat("Where is it?", "Here [bold]."), chat("Nothing?", "")]
    return write_rows(tmp_path / "data.jsonl", rows * 30)


def printed(shown, **options) -> str:
    out = io.StringIO()
    print_row(shown, Console(file=out, width=100, **options))
    return out.getvalue()


def test_the_learned_part_stands_between_marks_or_is_coloured_on_a_terminal(data, tiny_model):
    """Where there is no colour, what is learned stands between double brackets, the rest as the
    template writes it; on a terminal it is green, and no marks are put into the text.
    """
    shown = show_row(data, row=1, model=str(tiny_model))
    (part,) = shown["parts"]
    assert part["learned_tokens"] < part["tokens"]
    marked = "\nWhere is it?<|im_end|>\n<|im_start|>assistant\n[[Here [bold].<|im_end|>]]\n"
    assert "<|im_start|>user" + marked in printed(shown)
    terminal = {"force_terminal": True, "color_system": "standard"}
    text = printed(shown, **terminal)
    assert "\x1b[1;32mHere [bold].<|im_end|>\x1b[0m" in text
    assert "[[" not in text
    assert "[[Here" in printed(shown, **terminal, no_color=True)


def test_without_a_model_the_plain_template_is_shown(data):
    """No model named: the mask is shown in the plain template, which is said, and tokens are not
    counted.
    """
    shown = show_row(data, row=1)
    assert shown["template"].startswith("no model was named")
    assert shown["parts"][0]["tokens"] is None
    assert "User: Where is it?\n\nAssistant:[[ Here [bold].<|end|>]]" in printed(shown)


@pytest.mark.light
def test_a_row_that_is_left_out_says_why(data):
    """A row that no trainer would use is shown with the reason."""
    text = printed(show_row(data, row=2))
    assert "This row is left out of the training, and counted: no answer to learn from" in text


def test_pairs_and_prompts_are_shown_as_they_are_trained(tmp_path):
    """A pair shows both answers behind their prompt; a question with a verifiable answer shows the
    prompt and the answer beside it.
    """
    pairs = [{"prompt": f"Question {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    parts = show_row(write_rows(tmp_path / "pairs.jsonl", pairs), row=3)["parts"]
    answers = [part["stretches"][-1]["text"].strip() for part in parts]
    assert answers == ["Yes.<|end|>", "No.<|end|>"]
    for part in parts:
        assert "Question 2?" in part["stretches"][0]["text"]
        assert not part["stretches"][0]["learned"]
    sums = [{"prompt": f"What is {n} + {n}?", "ground_truth": str(2 * n)} for n in range(5)]
    (part,) = show_row(write_rows(tmp_path / "sums.jsonl", sums), row=3)["parts"]
    assert part["answer"] == "4"
    assert not any(stretch["learned"] for stretch in part["stretches"])


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path):
    """A row cannot move the cursor or change colours by itself."""
    rows = [{"prompt": f"{n} \x1b[2J?", "completion": "ok \x07"} for n in range(3)]
    text = printed(show_row(write_rows(tmp_path / "data.jsonl", rows), row=1))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_the_check_command_shows_a_row_that_a_process_of_its_own_reads(data, tiny_model, call):
    """`advise check DATA --show-row N --model M` prints the row, and one JSON document with --json; a
    row that is not there is the user's error.
    """
    code, out, _ = call("check", data, "--show-row", 1, "--model", tiny_model)
    assert code == 0
    assert "[[Here [bold].<|im_end|>]]" in out
    document = json.loads(call("check", data, "--show-row", 1, "--json")[1])
    assert document["schema_version"] == 1
    learned = [stretch["learned"] for stretch in document["parts"][0]["stretches"]]
    assert learned == [False, True, False]
    for row, said in (
        (61, ("there is no row 61", "it has 60 rows, counted from 1")),
        (0, ("rows are counted from 1",)),
    ):
        code, _, told = call("check", data, "--show-row", row)
        assert code == 2
        assert all(words in told for words in said)
