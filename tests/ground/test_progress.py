"""What a wait shows in logs, on terminals and in a run folder, and messages for the person."""

import gzip
import io
import json
import sys

import pytest

from advisor.data.read import lines as reading
from advisor.data.read.rows import read_rows
from advisor.ground import progress
from advisor.ground.progress import BYTES, Board, read_view, track, waiting
from advisor.ground.terminal import print_message
from advisor.ground.units import MIB
from advisor.record.content import read_contents


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def board(monkeypatch):
    """A board whose clock stands still, in the place of the process's own."""
    found = Board(clock=lambda: found.now_s, starts_thread=False)
    found.label, found.now_s = "sft", 100.0
    monkeypatch.setattr(progress, "board", found)
    return found


def passes(board, seconds):
    """So many seconds pass, and the thread looks each quarter of one."""
    for _ in range(int(seconds * 4)):
        board.now_s += 0.25
        board.tick()


def terminal(monkeypatch, term="xterm", kind=Terminal):
    """A terminal that standard error leads to from now on."""
    screen = kind()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def test_a_log_gets_lines_with_what_is_done_what_is_left_and_the_rate(board, capsys):
    """Soon at first, then every half a minute; with memory against its limit."""
    board.memory = lambda: (int(11.8 * 2**30), 24 * 2**30)
    with waiting("measuring the model before training"), waiting("rows", total=64) as done:
        passes(board, 4)
        assert capsys.readouterr().err == ""
        done(16)
        passes(board, 4)
        assert capsys.readouterr().err == (
            "sft: measuring the model before training: 5 s so far; rows: 16 of 64, 3.8 items/s,"
            " 12 s left; memory 11.8 of 24.0 GiB\n"
        )
        passes(board, 1200)
    assert 40 < len(capsys.readouterr().err.splitlines()) < 80


def test_a_rate_counts_the_time_until_the_last_one_was_done(board):
    """Neither what is half done makes it smaller, nor loading what answers, nor what was there."""
    with waiting("answers", total=64, unit="answers", done=16) as answers:
        passes(board, 40)  # something is loaded
        board.count_from_now()
        for _ in range(2):
            passes(board, 8)
            answers(16)
        passes(board, 4)
        assert "48 of 64 answers, 2.0 answers/s, 4 s left" in board.view().line()


def test_a_short_wait_shows_nothing(board, monkeypatch):
    """Below two seconds nothing appears, neither in a log nor on a terminal."""
    screen = terminal(monkeypatch)
    for _ in track([1, 2, 3], "rows"):
        passes(board, 0.5)
    assert screen.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_again(board, monkeypatch):
    """The outer count moves the bar; below it is what a log gets. A hidden cursor returns."""
    screen = terminal(monkeypatch)
    with waiting("training", total=108, unit="steps") as steps:
        steps.at(12, text="loss 1.234", left_s=120)
        with waiting("generating answers", total=64, unit="answers") as answers:
            answers(12)
            passes(board, 3)
    shown = screen.getvalue()
    assert "training: 12 of 108 steps, loss 1.234, 2 min left" in shown
    assert "answers: 12 of 64 answers, 4.0 answers/s, 13 s left" in shown
    assert shown.count("\x1b[?25h") == shown.count("\x1b[?25l") > 0
    assert sys.stderr is screen


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(board, monkeypatch):
    """TERM=dumb, which screen readers and editors set."""
    screen = terminal(monkeypatch, "dumb")
    with waiting("downloading", total=270 * MIB, unit=BYTES) as done:
        done(90 * MIB)
        passes(board, 6)
    assert screen.getvalue() == "sft: downloading: 90 of 270 MiB, 18.0 MiB/s, 10 s left\n"


def test_a_terminal_that_is_gone_stops_nothing(board, monkeypatch):
    """A wait ends no work because nobody can see it any more."""

    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for term in ("dumb", "xterm"):
        terminal(monkeypatch, term, Gone)
        with waiting("training", total=3, unit="steps") as done:
            passes(board, 20)
            done()


def test_who_looks_into_the_run_folder_sees_the_same(board, tmp_path):
    """A file there says where the process is; it goes with the outermost wait."""
    board.folder = tmp_path
    board.memory = lambda: (2**30, None)
    with waiting("training", total=8, unit="steps", done=2) as done:
        done.at(4, text="loss 1.0", left_s=12.0)
        passes(board, 2)
        assert (
            read_view(tmp_path).line()
            == "sft: training: 4 of 8 steps, loss 1.0, 12 s left; memory 1.0 GiB"
        )
    assert (read_view(tmp_path), list(tmp_path.iterdir())) == (None, [])


WAIT = {"what": "w", "total": 5, "unit": "steps", "began_s": 1, "done": 2, "first": 0, "text": "", "left_s": 3}  # fmt: skip
VIEW = json.dumps({"label": "sft", "at_s": 1, "memory": [1, 2], "waits": [WAIT]})
OLD = {"at_s": "1", "waits": json.dumps([WAIT])} | {
    key: json.dumps(WAIT[key]) for key in ("began_s", "left_s", "done", "total", "first")
}
NOTHING = ("Infinity", "NaN", "1e300", "null", "[]", "{}", "9" * 400)  # a number can be
DAMAGED = [
    *("", "{}", "[1]", '{"label": 1, "waits": [{}], "memory": null}', "[" * 100_000),
    *(
        VIEW.replace(f'"{key}": {old}', f'"{key}": {value}')
        for key, old in OLD.items()
        for value in NOTHING
        if (key, value) != ("left_s", "null")  # not known
    ),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_says_nothing(tmp_path, content):
    """Whatever stands there: neither a traceback nor a view that cannot be drawn."""
    (tmp_path / progress.FILE).write_text(VIEW)
    assert read_view(tmp_path) is not None
    (tmp_path / progress.FILE).write_text(content)
    assert read_view(tmp_path) is None


def test_a_wait_that_is_left_early_ends_with_what_is_inside(board):
    """An error that leaves a loop may leave it open; a loop may begin no further items."""
    outer = board.open("outer")
    board.open("inner")
    board.close(outer)
    assert board.waits == []
    with waiting("outer"):
        for item in track(range(0, 16, 4), "answers", each=4, of=16):
            if item == 8:
                assert board.waits[-1].done == 8
                break
        assert [wait.what for wait in board.waits] == ["outer"]


def test_the_other_processes_of_a_run_show_nothing(board, capsys, tmp_path):
    """The main one does."""
    board.is_shown, board.folder = False, tmp_path
    with waiting("training", total=8):
        passes(board, 60)
        board.say_now()
    assert (capsys.readouterr().err, list(tmp_path.iterdir())) == ("", [])


@pytest.fixture
def heard(board, monkeypatch):
    """How far each wait was, and of how much, whenever it went on."""
    seen = []
    monkeypatch.setattr(board, "heard", lambda wait: seen.append((wait.done, wait.total)))
    return seen


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_shows_how_far_it_is_read(board, heard, tmp_path, monkeypatch, packed):
    """By its place in the file, also of one that is compressed; the wait goes with the file."""
    monkeypatch.setattr(reading, "LARGE_BYTES", 1000)
    monkeypatch.setattr(reading, "PIECE_BYTES", 4096)
    content = "".join(f'{{"text": "{number} {hash(number * 7)}"}}\n' for number in range(40_000))
    path = tmp_path / f"rows.jsonl{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    rows = read_rows(path)
    next(number for number, _ in rows if number == 5000)
    assert [wait.what for wait in board.waits] == [f"reading {path.name}"]
    size = path.stat().st_size
    assert 0 < heard[-1][0] < size
    inner = board.open("something inside")
    rows.close()
    assert board.waits == [inner]
    board.close(inner)
    assert (sum(1 for _ in read_rows(path)), heard[-1], board.waits) == (40_000, (size, size), [])


def test_a_small_file_is_no_wait(board, tmp_path):
    """It is read before anybody waits."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for _ in read_rows(tmp_path / "rows.jsonl"):
        assert board.waits == []


def test_files_that_are_read_to_know_them_again_are_counted(board, heard, tmp_path):
    """All of them together, in bytes."""
    files = {name: tmp_path / name for name in ("a", "b")}
    for path in files.values():
        path.write_bytes(b"x" * 3000)
    read_contents(files)
    assert (heard[-1], board.waits) == ((6000, 6000), [])


def test_a_child_process_takes_the_terminal_over(board, capsys):
    """The parent's waits are over once it starts one, and closing them later is no harm."""
    with waiting("checking plan, data and machine"), waiting("reading files"):
        board.hand_over()
        assert board.waits == []
        passes(board, 60)
    assert capsys.readouterr().err == ""


SENTENCE = "about 8 min in all (load 9 s, measuring before 54 s, training 6 min, afterwards 38 s)"
COMMAND = "advise run plan.yaml --output runs/a-folder-with-a-name-as-long-as-this-one-here-is"


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
@pytest.mark.parametrize("text", [SENTENCE, f"  {COMMAND}", f"resume with: {COMMAND}"])
def test_a_message_is_broken_between_words_on_a_terminal(monkeypatch, stream, text):
    """No word is cut or lost; commands, and lines of a log that programs read, stay on one line."""
    shown = terminal(monkeypatch, kind=stream)
    monkeypatch.setenv("COLUMNS", "40")
    print_message(text)
    said = shown.getvalue()
    if text == SENTENCE and stream is Terminal:
        assert max(map(len, said.splitlines())) <= 40
        assert said.split() == SENTENCE.split()
    else:
        assert said == f"{text}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  one of these: " + "classification " * 3, "  one of these: classification\n"
         "  classification classification\n"),
        (f"where the sentence before it is longer than a line: {COMMAND}",
         f"where the sentence before it is longer\nthan a line:\n{COMMAND}\n"),
        ("  the questions, by `advise --task qa --why`, say it",
         "  the questions, by\n  `advise --task qa --why`, say it\n"),
        ("   12 | tabels: {}, which is a line of a file", None),
    ],
)  # fmt: skip
def test_an_error_keeps_its_indent_and_its_commands_whole(monkeypatch, text, said):
    """Lines that are shown of a file stay as they are, too."""
    shown = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    print_message(text)
    assert shown.getvalue() == (said or f"{text}\n")
