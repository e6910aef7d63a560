"""Whatever file is no data is one clear error, never a traceback or a hang."""

import csv
import gzip
import io
import json
import os
import re
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest

from advisor.data import (
    Faults,
    SkippedRows,
    find_data,
    profile,
    read_examples,
    read_rows,
    recognise,
)
from advisor.data.measure import Depth
from advisor.data.read import json_rows, lines
from advisor.ground.errors import InputError, MachineNotReady
from tests.data.conftest import BOT, USER, jsonl, pairs

PAIR = {"question": "Q", "answer": "A"}
GOOD = json.dumps(PAIR) + "\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path | str) -> str:
    """The text of the error that both reading and profiling raise."""
    with pytest.raises(InputError) as read:
        list(read_rows(path))
    with pytest.raises(InputError) as measured:
        profile(path)
    assert measured.value.exit_code == 2
    assert read.value.faults[0].headline == measured.value.faults[0].headline
    return str(read.value)


@pytest.mark.parametrize(
    ("there", "asked", "says"),
    [  # what is in a folder (a link as "-> target"), what is asked for, and what is said
        # The nearest name, else the data files of the folder; a folder that is missing too.
        ({"train.jsonl": GOOD}, "trian.jsonl", "did you mean"),
        ({"train.jsonl": GOOD}, "train.json", "train.jsonl"),
        ({"support.csv": GOOD}, "zzzz.jsonl", "support.csv"),
        ({"train.jsonl": GOOD}, "nowhere/deep/a.jsonl", "does not exist either"),
        # A loop of links cannot be opened; a broken link names what it points at.
        ({"a.jsonl": "-> a.jsonl"}, "a.jsonl", "cannot be opened"),
        ({"a.jsonl": "-> gone.jsonl"}, "a.jsonl", "gone.jsonl"),
        # Pictures are no text, and a table beside texts could mean two things.
        ({f"{index}.png": b"\x89PNG\r\n" for index in range(3)}, "", "found 3 .png"),
        ({}, "", "it is empty"),
        ({"a.jsonl": GOOD, "chapter.txt": "Once upon a time"}, "", "mixes kinds"),
    ],
)
def test_a_place_without_data_is_answered_with_what_is_there(tmp_path, there, asked, says):
    """A name that is near, a link that leads nowhere, a folder of something else."""
    for name, content in there.items():
        if str(content).startswith("-> "):
            (tmp_path / name).symlink_to(content[3:])
        else:
            write(tmp_path, name, content)
    assert says in error_of(tmp_path / asked)


HTML = "<!DOCTYPE html>\n<html><body>Sign in</body></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:8e66\nsize 1050\n"
NUL = b'question,answer\n"a\0","b"\n'
UNREADABLE = [
    ("a.jsonl", ""),
    ("a.jsonl", "\n\n  \n"),
    ("a.jsonl", "\n \n"),
    ("a.json", "[]"),
    ("a.json", " "),
    ("a.csv", "question,answer\n"),
    ("a.txt", "\n\n"),
    # Office documents have a way out; the first bytes decide, not the ending.
    *[(f"a.{end}", b"PK\x03\x04whatever") for end in ("xlsx", "xls", "docx", "pdf", "pptx")],
    ("a.csv", b"PK\x03\x04\x14\x00"),
    ("a.png", b"\x89PNG\r\n"),
    ("a.dat", "hello"),
    # What was downloaded in place of the file.
    *[(name, HTML) for name in ("a.json", "a.jsonl", "a.csv")],
    *[(name, POINTER) for name in ("a.json", "a.parquet", "a.txt")],
    ("a.jsonl.gz", b"\x1f\x8b\x08garbage"),
    *[(name, NUL) for name in ("a.jsonl", "a.csv", "a.txt")],
    # Carriage returns alone: one line with several rows in it.
    ("a.jsonl", GOOD.replace("\n", "\r") * 2),
    ("a.json", '[\n  {"question": "Q", "answer": "A"},\n  {"question": "Q", "answer" "A"}\n]\n'),
    ("a.json", '[{"text": "b"}, {"text": "c'),
    ("a.json", '[{"text": "b"}'),
    ("a.json", '[{"text": "b"},]'),
    ("a.json", '[{"text": "b"} {"text": "c"}]'),
    ("a.json", '[{"text": "b"}] trailing'),
    ("a.json", "[" * 100_000),
    ("a.json", '[{"a": ' + "9" * 5000 + "}]"),
    ("a.json", '{"train": [{"text": "b"}], "test": [{"text": "c"}], "data": [{"text": "d"}]}'),
    ("a.json", '{"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}'),
    ("a.json", json.dumps({"data": [PAIR] * 60}, indent=1) * 2),
    ("a.json", json.dumps({"data": [PAIR] * 50, "train": [PAIR]})),
    ("a.json", json.dumps({"data": [PAIR] * 50})[:-1]),
    ("a.json", json.dumps({"data": [PAIR] * 50})[:-30]),
    # Open quotes, stray quotes, wrong counts and twin names.
    ("a.csv", 'question,answer\na,b\nc,"d\ne,f\n'),
    ("a.csv", "question,answer\na,b,c\nd\n"),
    ("a.csv", 'question,answer\n"a"x,b\n'),
    ("a.csv", "question,question\na,b\n"),
]


@pytest.mark.parametrize(
    ("name", "content"),
    UNREADABLE,
    ids=[f"{index}-{case[0]}" for index, case in enumerate(UNREADABLE)],
)
def test_a_file_that_is_no_data_says_what_it_is_and_where_it_breaks(
    tmp_path, name, content, approved
):
    """Without rows, of another kind, or damaged: each has its own sentence."""
    approved(error_of(write(tmp_path, name, content)))


def test_fifo_is_refused_without_opening_it(tmp_path, monkeypatch):
    """A pipe, a device or what may not be read is refused by its kind, wherever it is named."""
    os.mkfifo(tmp_path / "a.jsonl")
    assert "FIFO" in error_of(tmp_path / "a.jsonl")
    good = write(tmp_path, "b.jsonl", GOOD)
    assert "FIFO" in error_of(tmp_path)
    with pytest.raises(InputError, match="FIFO"):
        profile(good, Depth(evaluation=tmp_path / "a.jsonl"))
    assert "a device" in error_of("/dev/zero")
    if find_spec("huggingface_hub"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "to_json" in error_of("tatsu-lab/alpaca")
    monkeypatch.setattr(os, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert "no permission to read it" in error_of(good)


def test_folder_that_links_to_itself_is_read_once_and_nothing_is_changed(tmp_path):
    """A link that leads back is entered once; reading leaves every file and folder as it was."""
    path = jsonl(tmp_path, pairs(3))
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    before = (path.stat().st_mtime_ns, path.read_bytes(), sorted(tmp_path.iterdir()))
    assert len(list(read_rows(tmp_path))) == 3
    assert any("loop.jsonl" in note for note in find_data(tmp_path).notes)
    profile(path)
    recognise(path)
    assert (path.stat().st_mtime_ns, path.read_bytes(), sorted(tmp_path.iterdir())) == before


def test_faulty_lines_come_together_and_good_rows_are_still_read(tmp_path, approved):
    """Every broken line is named at once by its place; who collects faults gets the other rows."""

    def faults_of(path):
        with pytest.raises(InputError) as caught:
            list(read_rows(path))
        return caught.value.faults

    broken = ['{"question": "Q" "answer": "A"}', "{'question': 'Q'}", '{"question": "Q"']
    path = write(tmp_path, "a.jsonl", GOOD + f"\n{GOOD}".join(broken) + "\n")
    # Counted by hand: the missing comma at the 18th character, the single quote at the 2nd, the end
    # after the 16th.
    table = write(tmp_path, "a.csv", "question,answer\na\nb,c\nd,e,f\n")
    faults = Faults()
    approved([faults_of(path), faults_of(table), list(read_rows(path, faults=faults)), faults.rows])


def test_truncated_gzip_names_where_it_breaks_off(tmp_path):
    """A download that was cut off is said, not passed off as a short file."""
    rows = [json.dumps({"question": f"{n} x {n * 7919 % 1013}?", "answer": n}) for n in range(5000)]
    packed = gzip.compress("\n".join(rows).encode())[:9000]
    assert "cut off or damaged after line" in error_of(write(tmp_path, "a.jsonl.gz", packed))
    packed = gzip.compress(f"[{','.join(rows)}]".encode())[:9000]
    assert "cut off or damaged" in error_of(write(tmp_path, "b.json.gz", packed))


def test_parquet_without_pyarrow_names_the_extra_and_a_broken_one_is_refused(tmp_path, monkeypatch):
    """The line to install, and an input error in place of a traceback."""
    path = write(tmp_path, "a.parquet", b"PAR1garbagePAR1")
    if find_spec("pyarrow"):
        assert "not a readable parquet file" in error_of(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MachineNotReady, match=r"pip install .*\[train\]'"):
        list(read_rows(path))


MIXED = [
    5, None, True, [1, 2], {}, {"question": None, "answer": "A"},
    {"question": "Q", "answer": {"a": {"b": None}}},
]  # fmt: skip
# As Parquet exports write them.
NULLS = [
    {"messages": None}, {"messages": [None]}, {"messages": [USER, None]},
    {"messages": [USER, {"role": "assistant", "content": None}]},
    {"messages": [USER, {"role": None, "content": None}]},
    {"messages": [{"role": "user", "content": [None]}, BOT]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("good", "odd"),
    [
        ([*pairs(99), {"question": ["a", "b"], "answer": 3}], MIXED),
        ([{"messages": [USER, BOT]}] * 3, NULLS),
    ],
)
def test_odd_rows_are_counted_by_their_reason(tmp_path, good, odd, approved):
    """Each odd row among good ones is counted, and none ends in a traceback."""
    result = profile(jsonl(tmp_path, [*good, *odd]), Depth(strict=False))
    approved([result.rows, result.measures, *result.findings])
    assert result.measures["rows_unusable"] == len(odd)


LARGE = {"a.jsonl": 100, "a.json": 30, "a.csv": 30, "a.txt": 30}


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        *[(name, 3) for name in LARGE],
        *[pytest.param(*one, marks=pytest.mark.slow) for one in LARGE.items()],
    ],
)
def test_many_megabytes_in_one_row_are_read(tmp_path, name, megabytes):
    """A row of a hundred megabytes takes seconds, not minutes, and is a warning."""
    text = "word " * (200_000 * megabytes)
    content = {
        "a.jsonl": f'{{"question": "Q", "answer": "{text}"}}\n',
        "a.json": f'[{{"question": "Q", "answer": "{text}"}}]',
        "a.csv": f'question,answer\nQ,"{text}"\n', "a.txt": text,
    }[name]  # fmt: skip
    started = time.process_time()
    result = profile(write(tmp_path, name, content), Depth(strict=False))
    assert time.process_time() - started < 30  # measured at 1 to 3 s
    assert result.rows == 1
    assert result.tokens.longest >= 250_000 * megabytes
    assert name == "a.txt" or "very-long-rows" in {finding.id for finding in result.findings}


def test_hundreds_of_different_columns_are_answered_at_once(tmp_path):
    """A file whose rows all have other columns is refused without comparing every name."""
    rows = [{f"c{row}_{column}": "x" for column in range(200)} for row in range(300)]
    path, started = jsonl(tmp_path, rows), time.process_time()
    with pytest.raises(InputError, match="no known columns"):
        recognise(path)
    assert time.process_time() - started < 10  # twelve times as long with every name compared


def test_a_wrapped_list_is_read_row_by_row(tmp_path):
    """{"data": [...]} gives its rows, and a null among them is a row that is none."""
    rows = [*pairs(60), None, *pairs(60)]
    whole = json.dumps({"version": "1.0", "data": rows, "info": {"made": [1]}})
    path, skipped = write(tmp_path, "a.json", whole), SkippedRows()
    assert list(read_rows(path)) == list(enumerate(rows, 1))
    assert (len(list(read_examples(path, skipped=skipped))), skipped.total) == (120, 1)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_that_unpacks_to_more_than_memory_is_not_read_to_its_end(tmp_path, monkeypatch, name):
    """A packed file of some kilobytes may hold a row of gigabytes: reading stops at the limit."""
    for module in (lines, json_rows):
        monkeypatch.setattr(module, "MOST_ROW_BYTES", 3 << 20)
    start = '{"question": "' if name.endswith("l") else '[{"question": "'
    packed = gzip.compress(start.encode() + b"a" * (40 << 20))
    assert len(packed) < 60_000
    path = write(tmp_path, f"{name}.gz", packed)
    tracemalloc.start()
    assert ":1: a row of more than 3 MiB" in error_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_a_saved_data_set_without_all_parts_or_with_no_train_split_is_bad_input(tmp_path):
    """Nothing is trained on that was kept apart, or is a part of what was there."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([PAIR] * 40)
    table.save_to_disk(tmp_path / "parts", num_shards=4)
    (tmp_path / "parts" / "data-00002-of-00004.arrow").unlink()
    for name, splits in (("splits", ("en", "fr")), ("three", ("train", "test", "extra"))):
        datasets.DatasetDict(dict.fromkeys(splits, table)).save_to_disk(tmp_path / name)
    for name, said in (
        ("parts", r"1 of the 4 files .* are missing"), ("splits", "none is called train"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            list(read_examples(tmp_path / name))
    assert len(list(read_examples(tmp_path / "three"))) == 40


# A request and its answer as customers write_table them, and the encodings that office programs of that
# language save in.
TEXTS = {
    "German": ("Guten Tag, die Bestellung ist beschädigt, können Sie für mich nachsehen?",
     "Sehr geehrter Kunde, wir schicken Ihnen gern ein neues Gerät. Schöne Grüße",
     ("cp1252", "latin-1", "mac_roman")),
    "French": ("Bonjour, où est ma commande ? Elle devait être livrée à Noël.",
     "Votre colis a été expédié, il arrivera bientôt. Désolé pour la gêne.", ("cp1252", "latin-1")),
    "Spanish": ("¿Dónde está mi pedido? Llegó dañado el último año.",
     "Lo sentimos, mañana recibirá usted otro. Qué pena, señora.", ("cp1252", "mac_roman")),
    "Polish": ("Dzień dobry, moja przesyłka jeszcze nie dotarła. Proszę o pomoc.",
     "Dziękujemy za wiadomość, paczka będzie u Państwa w środę.", ("cp1250",)),
    "Turkish": ("Merhaba, siparişim hâlâ gelmedi, yardımcı olur musunuz?",
     "Teşekkürler, kargonuz yarın ulaşacak. İyi günler, görüşmek üzere.", ("cp1254",)),
    "Russian": ("Здравствуйте, моя посылка не пришла, помогите пожалуйста.",
     "Добрый день, она уже в пути и будет у вас в среду.", ("cp1251", "koi8-r")),
    "Greek": ("Καλημέρα, το δέμα μου δεν έφτασε ακόμα, μπορείτε να βοηθήσετε;",
     "Ευχαριστούμε για το μήνυμα, το δέμα θα φτάσει την Τετάρτη.", ("cp1253",)),
    "Hebrew": ("שלום, החבילה שלי עדיין לא הגיעה, תוכלו לעזור?", "תודה על הפנייה, החבילה תגיע מחר.",
     ("cp1255",)),
    "Arabic": ("مرحبا، لم تصل الشحنة بعد. هل يمكنكم المساعدة؟",
     "شكرا على رسالتكم، ستصل الشحنة غدا إن شاء الله.", ("cp1256",)),
    "Japanese": ("荷物がまだ届いていません。いつ届きますか？", "お問い合わせありがとうございます。明日にはお届けします。", ("cp932",)),
    "Chinese": ("你好，我的包裹还没有到，请问什么时候可以到？", "谢谢您的来信，包裹在路上了，明天就会到。", ("gb18030",)),
    "Korean": ("안녕하세요. 제 택배가 아직 도착하지 않았습니다.", "문의해 주셔서 감사합니다. 내일까지 배송이 도착할 예정입니다.", ("cp949",)),
}  # fmt: skip
# What is not sure is refused: Polish and Turkish letters make words of other languages as well.
UNSURE = ("mac_roman", "cp1250", "cp1254", "cp932")
CASES = [(name, coded) for name, (_, _, codings) in TEXTS.items() for coded in codings]


def table(rows: list[tuple[str, str]], separator: str = ",", end: str = "\r\n") -> str:
    """A table with the columns question and answer."""
    made = io.StringIO()
    writer = csv.writer(made, delimiter=separator, lineterminator=end)
    writer.writerow(("question", "answer"))
    writer.writerows(rows)
    return made.getvalue()


def values_in(path: Path) -> list[tuple[str, ...]]:
    """The rows of a table without their names."""
    return [tuple(row.values()) for _, row in read_rows(path)]


def rows_in(language: str) -> list[tuple[str, str]]:
    return [tuple(f"{text} {number}" for text in TEXTS[language][:2]) for number in range(30)]


def objects(rows):
    return [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in rows]


GERMAN = rows_in("German")
UTF8, CP1252 = (
    table(GERMAN, ";").encode(encoding).split(b"\r\n") for encoding in ("utf-8", "cp1252")
)
LATE = [*([("Where is it?", "On its way.")] * 2000), *rows_in("French")]
WRITTEN = {  # kind of file -> its text
    "a.csv": table, "a.json": lambda rows: f"[{','.join(objects(rows))}]",
    "a.jsonl": lambda rows: "\n".join(objects(rows)), "a.txt": lambda rows: table(rows, "\t"),
}  # fmt: skip
SAVED = [  # name, content, rows, and what is said of how it was read (None: not asked)
    *[
        ("a.csv", table(rows_in(language), separator).encode(encoding), rows_in(language),
         [f"{'semicolon, ' if separator == ';' else '(?!semicolon)'}"
          f"{'Windows-1252' if encoding == 'cp1252' else '.+'}: read as such"])
        for language, encoding in CASES if encoding not in UNSURE for separator in ",;"
    ],
    # UTF-16 and UTF-32 with their mark, in every kind of file; what Excel calls Unicode text is a
    # table with tabs, whatever its ending.
    *[
        (name, text(rows_in(language)).encode(encoding), rows_in(language),
         [f"tab, {encoding.upper()}: read as such"] if name == "a.txt" else None)
        for name, text in WRITTEN.items() for language in ("German", "Japanese")
        for encoding in ("utf-16", "utf-32")
    ],
    # A byte order mark and CRLF belong to no value, and need no words.
    *[("a.csv", mark + table(GERMAN, end=end).encode(), GERMAN, [])
      for mark in (b"", b"\xef\xbb\xbf") for end in ("\n", "\r\n")],
    *[
        (name, b"\xef\xbb\xbf" + WRITTEN[name](GERMAN).replace("\n", "\r\n").encode(), GERMAN, [])
        for name in ("a.json", "a.jsonl")
    ],
    ("a.tsv", table(GERMAN, "\t").encode(), GERMAN, []),
    # A file that begins in ASCII is read in the encoding of the letters that come later.
    *[(name, WRITTEN[name](LATE).encode("cp1252"), LATE, None) for name in ("a.csv", "a.json")],
    *[("a.csv.gz", gzip.compress(table(GERMAN, ";").encode(encoding)), GERMAN, None)
      for encoding in ("cp1252", "utf-16")],
    # `sep=;` is no header, and outranks the commas in one.
    ("a.csv", b"sep=;\r\nquestion;answer, in short, please\r\na;b\r\n", [("a", "b")], None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "rows", "said"), SAVED, ids=range(len(SAVED)))
def test_a_file_of_an_office_program_is_read_in_its_encoding(tmp_path, name, content, rows, said):
    """The letters that come out are those that went in, and the encoding is said in one line."""
    path = write(tmp_path, name, content)
    assert (values_in(path), next(iter(next(read_rows(path))[1]))) == (rows, "question")
    if said is not None:
        found = [
            one.text for one in profile(path, Depth(strict=False)).findings if one.id == "read-as"
        ]
        assert len(found) == len(said)
        assert all(re.fullmatch(*pair) for pair in zip(said, found, strict=True))


@pytest.mark.parametrize(
    "content",
    [
        # One fault names the first line and the command that converts the file.
        *[table(rows_in(language)).encode(encoding)
          for language, encoding in CASES if encoding in UNSURE],
        # Of two encodings in one file none is decoded by guess.
        b"\r\n".join([*UTF8[:10], *(line.decode().encode("cp1252") for line in UTF8[10:30]), *UTF8[30:]]),
        # Where one line has bytes that mean nothing, no encoding is taken.
        b"\r\n".join([*CP1252[:20], b"\x81" + CP1252[20], *CP1252[21:]]),
        b"\r\n".join([b"abc \x80\x9f def \xd7\xf7 \xac \xde\xd0q\xa4" + CP1252[20]] * 5),
        b"a,b\n\xff\xfe\x81,2\n",  # a byte order mark that is no start
    ],
    ids=range(9),
)  # fmt: skip
def test_a_table_whose_encoding_is_not_sure_is_refused(tmp_path, content, approved):
    """One fault names the first line of another encoding, and the command that converts the file."""
    with pytest.raises(InputError, match="not UTF-8") as caught:
        list(read_rows(write(tmp_path, "a.csv", content)))
    approved(caught.value.faults)


def test_a_table_without_names_of_columns_is_asked_for_them(tmp_path):
    """Sentences in the first line are no names; long questions above short answers are."""
    text = table(GERMAN, ";").partition("\r\n")[2]
    with pytest.raises(InputError, match="no known columns") as caught:
        recognise(write(tmp_path, "a.csv", text.encode("cp1252")))
    (fault,) = caught.value.faults
    assert "if the first line is a row, put a line with the names of the columns" in fault.hint
    asked = "What should we do better in future?\n"
    told = "17,You should answer faster on the phone.\n18,It is all fine with me now.\n"
    for text in (f"How content are you?,{asked}5,nothing\n4,be fast\n", f"ID,{asked}{told}"):
        assert len(values_in(write(tmp_path, "a.csv", text.encode()))) == 2


@pytest.mark.parametrize(
    ("encoding", "damage", "said"),
    [
        ("utf-16", b"\x00\xd8\x00\x00", "not sound UTF-16"),
        ("utf-16", b"x", "not sound UTF-16"),
        ("utf-16-le", b"", "UTF-16 without a byte order mark"),
    ],
)
def test_damaged_wide_characters_are_an_error(tmp_path, encoding, damage, said):
    """Half a character, a file cut inside one, or one without a mark, is not read by guess."""
    with pytest.raises(InputError, match=said):
        profile(write(tmp_path, "a.csv", table(GERMAN).encode(encoding) + damage))


def test_a_table_of_very_many_columns_is_asked_about_at_once(tmp_path):
    """Known names are found among them; others are not guessed, which takes more than linear."""
    names = [f"col{number}" for number in range(50_000)]
    cells = ",".join(names)
    path = tmp_path / "wide.csv"
    path.write_text(f"{cells}\n{cells}\n")
    began = time.thread_time()
    with pytest.raises(InputError, match="no known columns"):
        recognise(path)
    path.write_text(f"{cells},prompt,completion\n{cells},Why?,Because.\n")
    assert recognise(path).mapping == {"question": "prompt", "answer": "completion"}
    assert time.thread_time() - began < 5


def test_a_small_packed_file_of_many_rows_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    """Without a terminal, too: nobody waits for minutes without a word."""
    monkeypatch.setattr("advisor.ground.progress.LINE_EVERY_S", (0.0, 0.0))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 400_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="the same answer"):
        profile(path, Depth(full=True))
    assert re.search(r"reading a\.jsonl\.gz: \d[\d,]* lines", capsys.readouterr().err)
