"""Personal data of many countries, in check, advice and run alike, and numbers that are none."""

import time

import pytest

from advisor.commands.check import check_data
from advisor.data import profile
from advisor.data.checks import SeenRow, Subject
from advisor.data.checks.private import PrivateData
from advisor.data.example import Example
from tests.data.conftest import jsonl, pairs
from tests.data.test_checks import look
from tests.launch.test_before import checked as before_a_run
from tests.launch.test_before import planned


def kinds(text):
    return {name.removeprefix("personal-data-") for name in look(text).tallies}


# Numbers from the ranges that each country's regulator keeps for films, or of public offices.
@pytest.mark.parametrize(
    "text",
    [
        "Mein Paket ist nicht da, bitte rufen Sie mich an und nicht meine Frau: 030 23125 014",
        "Ich bin unter 01 5324 5000 in Wien zu erreichen, bitte nicht vor neun und nicht mit",
        "Bonjour, je suis au 01 99 00 12 34 pour les colis et vous pouvez le dire est une",
        "My number is 020 7946 0958 and you have this with that please",
        "Please have this with you and that: (212) 664-7665",
        "Hola, los paquetes y el correo por favor, usted puede con una llamada 91 123 45 67 para",
        "Buongiorno, il pacco e gli altri per me di che sono grazie: 06 6982 1234",
        "Het pakket is niet een en van mijn, ik ben met 020 123 4567",
        "Proszę się nie martwić, paczka jest do odbioru na i w 22 123 45 67",
        "Позвоните мне пожалуйста по номеру 8 (495) 123-45-67 после девяти часов утра",
        "tel 0043 1 555 0018",
        "Call me at 0171 1234567",
        "Telefon: 06641234567",
        "Her number: +43 1 5550018",
    ],
)
def test_a_telephone_number_is_told_as_it_is_written_at_home(text):
    """By the language of the row, a word before it, or its international form."""
    assert kinds(text) == {"phone"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("birth-date", "Mrs. Johanna Huber, born 12.03.1958, has a cough"),
        ("birth-date", "DOB: 03/12/58"),
        ("birth-date", "Date of birth: 1958-03-12"),
        ("birth-date", "Frau Huber, geb. am 12. März 1958 in Graz"),
        ("birth-date", "Born in Vienna on March 12, 1958."),
        ("birth-date", "née le 12 mars 1958"),
        ("birth-date", "fecha de nacimiento: 12/03/1958"),
        ("record-number", "MRN 00123456"),
        ("record-number", "the letter of case no. 4711/22"),
        ("record-number", "Patient ID: A-204711"),
        ("record-number", "Sozialversicherungsnummer 1237 010180"),
        ("record-number", "Passport No. P4366918"),
        ("record-number", "Steuer-ID 12 345 678 900"),
        ("record-number", "Ausweis-Nr. L01X00T4071"),
    ],
)
def test_dates_of_birth_and_numbers_of_records_are_told_by_the_word_before_them(kind, text):
    """And are masked: no digit after the second is shown."""
    seen = look(text)
    (name,) = seen.tallies
    assert (name, "***" in seen.shown[name]) == (f"personal-data-{kind}", True)


@pytest.mark.parametrize(
    "language", ["", "und der die nicht mit ich sie bitte ", "w i na nie się jest do "]
)
@pytest.mark.parametrize(
    "text",
    [
        "order 0712345678 was paid, order no. 0171 1234567 was not",
        "Bestellnummer 0301234567, Rechnung Nr. 0171-1234567",
        "It costs 1 234 567.89 or 5336352000 in all: 18,120,000 + 62426244000.",
        "223905 / 3245 = 69, 0.3571428571, 168 - 192, in (2011-2015)",
        "ISBN 978-3-16-148410-0, host 192.168.100.200, on 2024-01-02 10:20:30",
        "It was born of an idea in 1958, the case of 12 patients is 4711 words",
        "phone 12.03.2024",
    ],
)
def test_orders_prices_addresses_and_books_are_no_telephones(text, language):
    """Whatever the language: only what is written as a number to dial is one."""
    assert kinds(language + text) == set()


def test_a_bank_account_is_no_payment_card_too():
    """Its groups may pass for one by their check digit."""
    assert kinds("Pay to DE41 5105 0000 1234 5602 00") == {"iban"}
    assert kinds("Pay to PL78 1090 1014 4111 1111 0000 0002") == {"iban"}
    assert kinds("Pay by 5105 0000 1234 5602") == {"card-number"}


def test_check_advice_and_run_find_the_same(tmp_path, monkeypatch, approved):
    """`advise check`, `advise --json --data` and the first lines of a run say the same of a file."""
    monkeypatch.chdir(tmp_path)
    rows = pairs(60)
    rows[3]["answer"] += " Call +43 1 5550018, born 12.03.1958, MRN 0012345, a@firma.de."
    rows[5]["answer"] += " Pay to DE89 3704 0044 0532 0130 00, or by 4111 1111 1111 1111."
    rows += [rows[0], {**rows[1], "question": "WHAT IS 1"}, {**rows[1], "question": "WHAT IS 1"}]
    path = jsonl(tmp_path, rows)
    checked = {one.id: one.text for one in check_data(str(path))[0].findings}
    approved(checked)
    assert {one.id: one.text for one in profile(path).findings} == checked
    told = [f"a.jsonl: {text}" for text in checked.values() if "what looks like" in text]
    warned = before_a_run(tmp_path, planned(tmp_path, ("sft", "a", {}))).warnings
    assert [one for one in warned if "what looks like" in one] == told


def test_a_large_file_is_looked_through_on_a_part_of_its_numbers():
    """Ten thousand rows with a number each: few are shown to the library, and the finding says so."""
    seen, began_s = PrivateData(Subject(kind="raw_text")), time.process_time()
    for row in range(1, 10_001):
        text = f"It is (212) 664-{7000 + row % 1000} and you have that with this please"
        seen.see(SeenRow(Example(row=row, text=text), text, b"", 0, 0))
    assert time.process_time() - began_s < 5
    assert 128 < seen.phones.looked_at < 800
    (found,) = seen.findings()
    left = 10_000 - seen.phones.looked_at
    assert f"; {left:,} more rows with long numbers were not looked at" in found.text


@pytest.mark.parametrize("sign", ["1234,", "1234 ", "call 0171 12345 ", "born 12 ", "a@", "(1)"])
def test_a_row_full_of_numbers_is_looked_through_once(sign):
    """Half a million signs take no longer than reading them a few times."""
    began_s = time.process_time()
    look(sign * (500_000 // len(sign)))
    assert time.process_time() - began_s < 1
