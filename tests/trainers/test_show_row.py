"""`advise check DATA --show-row N`: a row as the trainers see it."""

import io
import json

import pytest
from rich.console import Console

from advisor.commands.check import row_as_trained as asked_row
from advisor.ground.errors import InputError
from advisor.render.check_page import print_row
from trainers.tools.show_row import show_row


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Where is it?"},
                {"role": "assistant", "content": "Here [bold]."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Nothing?"},
                {"role": "assistant", "content": ""},
            ]
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 30))
    return path


def printed(shown, **options) -> str:
    out = io.StringIO()
    print_row(shown, Console(file=out, width=100, **options))
    return out.getvalue()


def test_the_learned_part_stands_between_marks_without_colour(data, tiny_model):
    """Where there is no colour, what is learned stands between double brackets, the rest as the
    template writes it.
    """
    shown = show_row(data, row=1, model=str(tiny_model))
    (part,) = shown["parts"]
    assert part["learned_tokens"] < part["tokens"]
    assert (
        "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n[[Here"
        " [bold].<|im_end|>]]\n" in printed(shown)
    )


def test_the_learned_part_is_coloured_on_a_terminal(data, tiny_model):
    """On a terminal what is learned is green, and no marks are put into the text."""
    text = printed(
        show_row(data, row=1, model=str(tiny_model)), force_terminal=True, color_system="standard"
    )
    assert "\x1b[1;32mHere [bold].<|im_end|>\x1b[0m" in text
    assert "[[" not in text
    marked = printed(
        show_row(data, row=1, model=str(tiny_model)),
        force_terminal=True,
        color_system="standard",
        no_color=True,
    )
    assert "[[Here" in marked


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
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Question {number}?", "chosen": "Yes.", "rejected": "No."})
            + "\n"
            for number in range(5)
        )
    )
    parts = show_row(path, row=3)["parts"]
    assert [part["stretches"][-1]["text"].strip() for part in parts] == [
        "Yes.<|end|>",
        "No.<|end|>",
    ]
    assert all(
        "Question 2?" in part["stretches"][0]["text"] and not part["stretches"][0]["learned"]
        for part in parts
    )
    path = tmp_path / "sums.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"What is {number} + {number}?", "ground_truth": str(2 * number)})
            + "\n"
            for number in range(5)
        )
    )
    (part,) = show_row(path, row=3)["parts"]
    assert part["answer"] == "4"
    assert not any(stretch["learned"] for stretch in part["stretches"])


def test_the_child_answers_and_its_errors_arrive(data):
    """The command asks the trainers' code in a process of its own; a row that is not there is the
    user's error.
    """
    assert asked_row(str(data), row=1)["parts"][0]["stretches"][0]["learned"] is False
    with pytest.raises(InputError, match="there is no row 61") as caught:
        asked_row(str(data), row=61)
    assert caught.value.faults[0].allowed == "it has 60 rows, counted from 1"
    with pytest.raises(InputError, match="rows are counted from 1"):
        asked_row(str(data), row=0)


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path):
    """A row cannot move the cursor or change colours by itself."""
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{number} \x1b[2J?", "completion": "ok \x07"}) + "\n"
            for number in range(3)
        )
    )
    text = printed(show_row(path, row=1))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_the_check_command_has_the_option(data, tiny_model):
    """`advise check DATA --show-row N --model M` prints the row, and one JSON document with
    --json.
    """
    from click.testing import CliRunner

    from advisor.cli import advise

    done = CliRunner().invoke(
        advise, ["check", str(data), "--show-row", "1", "--model", str(tiny_model)]
    )
    assert done.exit_code == 0
    assert "[[Here [bold].<|im_end|>]]" in done.output
    document = json.loads(
        CliRunner().invoke(advise, ["check", str(data), "--show-row", "1", "--json"]).stdout
    )
    assert document["schema_version"] == 1
    assert [stretch["learned"] for stretch in document["parts"][0]["stretches"]] == [
        False,
        True,
        False,
    ]
