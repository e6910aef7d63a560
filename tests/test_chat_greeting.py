"""`advise chat` says what is known of a result before anybody talks to it."""

import json

from advisor.commands.chat import greet
from tests.render.test_report import RECORD


def test_the_verdict_comes_first(tmp_path, capsys):
    """The same three lines as everywhere, on standard error; answers alone go to standard
    output.
    """
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    greet(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    for words in (
        "mine, as it was measured:",
        "Task     better: held-out loss 4 -> 2",
        "General  ",
    ):
        assert words in err
    assert err.index("Task") < err.index("General") < err.index("Next")


def test_a_record_that_cannot_be_read_is_no_reason_not_to_talk(tmp_path, capsys):
    """Chat itself says what is wrong with a folder."""
    (tmp_path / "run.json").write_text("{")
    greet(tmp_path)
    greet(tmp_path / "nothing")
    assert capsys.readouterr().err == ""
