"""Files as office programs save them: other encodings, other separators, byte order marks."""

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pytest

from advisor.data import profile, read_rows, recognise
from advisor.data.measure import Depth
from advisor.ground.errors import InputError

# A request and its answer as customers write them, and the encodings that office programs of that
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


def write(folder: Path, content: bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


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
READ = [  # name, content, rows, and what is said of how it was read (None: not asked)
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


@pytest.mark.parametrize(("name", "content", "rows", "said"), READ, ids=range(len(READ)))
def test_a_file_of_an_office_program_is_read_in_its_encoding(tmp_path, name, content, rows, said):
    """The letters that come out are those that went in, and the encoding is said in one line."""
    path = write(tmp_path, content, name)
    assert values_in(path) == rows
    assert next(iter(next(read_rows(path))[1])) == "question"
    if said is not None:
        found = [
            one.text for one in profile(path, Depth(strict=False)).findings if one.id == "read-as"
        ]
        assert len(found) == len(said)
        assert all(re.fullmatch(*pair) for pair in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # One fault names the first line and the command that converts the file.
        *[(table(rows_in(language)).encode(encoding), r"a\.csv:2: not UTF-8")
          for language, encoding in CASES if encoding in UNSURE],
        # Of two encodings in one file none is decoded by guess.
        (b"\r\n".join([*UTF8[:10], *(line.decode().encode("cp1252") for line in UTF8[10:30]), *UTF8[30:]]),
         r"a\.csv:11: not UTF-8"),
        # Where one line has bytes that mean nothing, no encoding is taken.
        (b"\r\n".join([*CP1252[:20], b"\x81" + CP1252[20], *CP1252[21:]]), r"a\.csv:2: not UTF-8"),
        (b"\r\n".join([b"abc \x80\x9f def \xd7\xf7 \xac \xde\xd0q\xa4" + CP1252[20]] * 5),
         r"a\.csv:1: not UTF-8"),
    ],
)  # fmt: skip
def test_a_table_whose_encoding_is_not_sure_is_refused(tmp_path, content, said):
    """One fault names the first line of another encoding, and the command that converts the file."""
    with pytest.raises(InputError, match=said) as caught:
        list(read_rows(write(tmp_path, content)))
    (fault,) = caught.value.faults
    assert "iconv -f ENCODING -t UTF-8 a.csv > utf8-a.csv" in fault.hint


def test_a_table_without_names_of_columns_is_asked_for_them(tmp_path):
    """Sentences in the first line are no names; long questions above short answers are."""
    text = table(GERMAN, ";").partition("\r\n")[2]
    with pytest.raises(InputError, match="no known columns") as caught:
        recognise(write(tmp_path, text.encode("cp1252")))
    (fault,) = caught.value.faults
    assert "if the first line is a row, put a line with the names of the columns" in fault.hint
    asked = "What should we do better in future?\n"
    told = "17,You should answer faster on the phone.\n18,It is all fine with me now.\n"
    for text in (f"How content are you?,{asked}5,nothing\n4,be fast\n", f"ID,{asked}{told}"):
        assert len(values_in(write(tmp_path, text.encode()))) == 2


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
        profile(write(tmp_path, table(GERMAN).encode(encoding) + damage))
