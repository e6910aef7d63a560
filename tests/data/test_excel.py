"""Excel files as data: sheets, cells as a person sees them, and files that are made to do harm."""

import datetime
import shlex
import zipfile
from importlib.util import find_spec

import pytest
from rich.console import Console

from advisor.data import profile, read_rows
from advisor.data.read.lines import MOST_ROW_BYTES
from advisor.data.read.source import COMMANDS
from advisor.ground.errors import InputError, MachineNotReady
from advisor.wizard.prompts import QuestionaryUi
from tests.data.conftest import findings
from tests.wizard.test_data_file import found

openpyxl = pytest.importorskip("openpyxl")
HEADER = ["question", "answer"]
ROWS = [[f"Where is parcel {n}?", f"It came on day {n}."] for n in range(60)]
SHEET = "xl/worksheets/sheet1.xml"


def book(folder, sheets, name="a.xlsx", hidden=()):
    """A workbook by title -> rows."""
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = "hidden" if title in hidden else "visible"
    made.save(folder / name)
    return folder / name


def with_part(path, name, text):
    """The workbook with one part of its archive replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in (parts | {name: text}).items():
            archive.writestr(one, content)
    return path


@pytest.mark.parametrize(
    ("value", "form", "seen"),
    [
        ("a text", "General", "a text"),
        (None, "General", ""),
        (True, "General", "TRUE"),
        (3, "General", "3"),
        (3.0, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (0.19, "0%", "19%"),
        (0.195, "0.0%", "19.5%"),
        (1234.5, '#,##0.00 "€"', "1,234.50 €"),
        (-1234.5, "[$$-409]#,##0.00;[Red]-[$$-409]#,##0.00", "$-1,234.50"),
        (1171, "00000", "01171"),
        (2.5, "0.##", "2.5"),
        (7, '0 "kg"', "7 kg"),
        (datetime.date(2025, 3, 12), "dd.mm.yyyy", "12.03.2025"),
        (datetime.date(2025, 3, 12), "d/m/yy", "12/3/25"),
        (datetime.date(2025, 3, 12), "mm-dd-yy", "2025-03-12"),  # each country sees another order
        (datetime.date(2025, 3, 12), "d. mmmm yyyy", "2025-03-12"),  # in the person's language
        (datetime.datetime(2025, 3, 12, 14, 5), "dd.mm.yyyy hh:mm", "12.03.2025 14:05"),
        (datetime.datetime(2025, 3, 12, 14, 5), "h:mm AM/PM", "2:05 PM"),
        (datetime.time(9, 30), "hh:mm", "09:30"),
    ],
)
def test_a_cell_is_the_text_that_a_person_sees(tmp_path, value, form, seen):
    """Numbers, money, shares, dates and yes or no, laid out as the sheet does."""
    path = book(tmp_path, {"A": [["text", "cell"], ["a row", None]]})
    made = openpyxl.load_workbook(path)
    made.active["B2"].value, made.active["B2"].number_format = value, form
    made.save(path)
    assert list(read_rows(path)) == [(2, {"text": "a row", "cell": seen})]


def test_sheets_with_the_same_columns_are_read_and_the_others_named(tmp_path, approved):
    """The largest decides; a title above the names is left out, and all of it is said."""
    sheets = {
        "Cover": [["Our shop", "2025"]],
        "March": [["All mails of March"], [], HEADER, *ROWS],
        "April": [HEADER, ["Q of April", "A of April"]],
        "Old": [HEADER, *ROWS, *ROWS],
    }
    path = book(tmp_path, sheets, hidden=["Old"])
    rows = list(read_rows(path))
    approved([len(rows), rows[0], rows[-1], findings(path)])  # with numbers as Excel counts
    assert profile(book(tmp_path, {"A": [HEADER, *ROWS]}, "b.xlsx")).findings == ()


def test_cells_beside_and_below_the_names_are_not_lost(tmp_path):
    """A column without a name keeps its place as one; empty rows are none."""
    path = book(tmp_path, {"A": [HEADER, ["Q", "A", "more"], [None, None], ["Q2"]]})
    assert list(read_rows(path)) == [
        (2, {"question": "Q", "answer": "A", "column_3": "more"}),
        (4, {"question": "Q2", "answer": ""}),
    ]
    with pytest.raises(InputError, match=r"a.xlsx:1: two columns are called question"):
        profile(book(tmp_path, {"A": [["question", "question"], ["Q", "A"]]}))
    with pytest.raises(InputError, match="no rows"):
        profile(book(tmp_path, {"A": []}))


def test_formulas_without_a_result_are_said(tmp_path, approved):
    """Libraries write them so: the cells would be empty without a word."""
    rows = [[*row, f"=LEN(A{place})"] for place, row in enumerate(ROWS, 2)]
    approved(findings(book(tmp_path, {"A": [[*HEADER, "length"], *rows]}))["read-as"])


def test_a_large_workbook_is_measured_on_its_first_rows(tmp_path, monkeypatch):
    """The number of its rows is what the sheet says."""
    monkeypatch.setattr("advisor.data.measure.QUICK_BYTES", 4000)
    monkeypatch.setattr("advisor.data.measure.QUICK_ROWS", 20)
    found = profile(book(tmp_path, {"A": [HEADER, *ROWS]}))
    assert (found.rows, found.measures["rows_used"]) == (60, 20)


def test_a_folder_of_workbooks_is_read_and_one_beside_other_data_is_named(tmp_path, approved):
    """Files of one kind are one data set; a workbook beside texts or a CSV is not."""
    for name in ("a.xlsx", "b.xlsx"):
        book(tmp_path, {"A": [HEADER, *ROWS]}, name)
    alone = profile(tmp_path)
    (tmp_path / "c.csv").write_text(
        "question,answer\n" + "".join(map("Q{0},A{0}\n".format, range(60)))
    )
    approved([[one.rows, one.findings] for one in (alone, profile(tmp_path))])


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
HARM = {
    "unpacks to too much": ("xl/media/a.bin", b"\0" * (MOST_ROW_BYTES + 1), "it unpacks to 256 MiB"),
    "a row beyond all": (
        SHEET, '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        '<sheetData><row r="1"><c r="A1"><v>1</v></c></row><row r="99999999999"><c r="A99999999999">'
        "<v>1</v></c></row></sheetData></worksheet>", "more rows or cells than Excel writes",
    ),
    "a column beyond all": (
        SHEET, '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        '<sheetData><row r="1"><c r="ZZZZZZZ1"><v>1</v></c></row></sheetData></worksheet>',
        "not a readable Excel file",
    ),
    "entities": (
        SHEET, f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]><worksheet xmlns="http://schemas.openxmlformats'
        '.org/spreadsheetml/2006/main"><sheetData><row><c t="inlineStr"><is><t>&l11;</t></is></c></row>'
        "</sheetData></worksheet>", "not a readable Excel file",
    ),
    "no XML": (SHEET, "<worksheet><sheetData>", "not a readable Excel file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
def test_a_workbook_made_to_do_harm_is_refused(tmp_path, name):
    """In a moment, with one message, and without the memory that it asks for."""
    part, content, says = HARM[name]
    path = with_part(book(tmp_path, {"A": [HEADER, *ROWS]}), part, content)
    with pytest.raises(InputError, match=says):
        list(read_rows(path))


def test_a_damaged_workbook_ends_in_a_message(tmp_path):
    """Wherever a byte is wrong."""
    whole, refused = book(tmp_path, {"A": [HEADER, *ROWS]}).read_bytes(), 0
    for place in range(0, len(whole), 97):
        (tmp_path / "b.xlsx").write_bytes(whole[:place] + b"\xff\0\xff" + whole[place + 3 :])
        try:
            list(read_rows(tmp_path / "b.xlsx"))
        except InputError:
            refused += 1
    assert refused > 10


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    """And the way around it."""
    path = book(tmp_path, {"A": [HEADER, *ROWS]})
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MachineNotReady, match=r"pip install .*\[office\]'.*save it as CSV"):
        list(read_rows(path))


# -------------------------------------------------------------------------- documents


@pytest.mark.parametrize("suffix", sorted({*COMMANDS} - {".xlsx", ".html", ".htm"}))
def test_a_document_is_refused_with_the_command_for_just_this_file(tmp_path, suffix, approved):
    """Its own name, quoted, and no placeholder."""
    path = tmp_path / f"Our rules (new){suffix}"
    path.write_bytes(b"%PDF-1.4" if suffix == ".pdf" else b"PK\x03\x04")
    with pytest.raises(InputError) as caught:
        profile(path)
    approved(caught.value.faults)
    assert str(path) in shlex.split(caught.value.faults[0].hint.rpartition(":\n")[2])


def test_documents_in_a_folder_have_a_command_for_all_of_them(tmp_path, approved):
    """For those of each ending, below the folder as it was named."""
    (tmp_path / "our rules").mkdir()
    (tmp_path / "our rules" / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(InputError) as caught:
        profile(tmp_path / "our rules")
    approved(caught.value.faults)


# -------------------------------------------------------------------------- Parquet and Arrow


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("form", ["parquet", "arrow file", "arrow stream"])
def test_parquet_and_arrow_are_read_where_pyarrow_is(tmp_path, form):
    """The same rows, whichever way they were saved."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {"question": [one for one, _ in ROWS], "answer": [one for _, one in ROWS]}
    )
    path = tmp_path / f"a.{form.split()[0]}"
    if form == "parquet":
        parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if form == "arrow file" else pyarrow.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    found = profile(path)
    assert (found.rows, found.kind, found.format) == (60, "paired", "question_answer")


# -------------------------------------------------------------------------- the wizard


def test_the_wizard_says_once_which_sheets_are_read(tmp_path):
    """Below the number of examples."""
    values = {"data_path": str(book(tmp_path, {"A": [HEADER, *ROWS], "B": [["x", "y"], [1, 2]]}))}
    (said,) = [one for one in found(values) if "not read: B" in one]
    assert said.strip().startswith("sheet A; not read: B")


def test_a_line_for_a_path_says_that_tab_lists_files(monkeypatch):
    """Of a path alone: there it does so."""
    shown, typed = [], type("Typed", (), {"unsafe_ask": lambda _self: "a"})
    for name in ("path", "text"):
        monkeypatch.setattr(f"questionary.{name}", lambda text, **_: shown.append(text) or typed())
    for path in (True, False):
        ui = QuestionaryUi(Console())
        ui.enter("Where?", hint="Enter alone: none", default="", path=path, keep=False)
    assert ["Tab lists files; Enter alone: none" in one for one in shown] == [True, False]
