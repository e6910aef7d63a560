"""What tells who somebody is: addresses, accounts, dates of birth, numbers of records, telephones.

Telephone numbers are told by phonenumbers, in the countries where the language of the rows is
spoken: elsewhere a national number is none. The word before a number tells, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from advisor.data.checks.languages import script_of


class PrivateKind(Struct, frozen=True):
    """One sort of secret or personal datum."""

    id: str
    name: str
    needs: tuple[str, ...]  # a text without any of these cannot hold one
    pattern: str  # what is shown of it is its group `value`, else all of it
    holds: Callable[[str], bool] = bool


def _luhn(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [
        digit if index % 2 == 0 else sum(divmod(2 * digit, 10))
        for index, digit in enumerate(reversed(digits))
    ]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    bare = text.replace(" ", "")
    if not 15 <= len(bare) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def _is_dialled(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return 7 <= digits <= 15 and not re.match(rf"{DATE}|.* [/-] ", text)


def _after(words: tuple[str, ...], between: str, value: str) -> str:
    """A value behind one of these words."""
    known = "|".join(map(re.escape, words))
    return rf"(?i)(?<!\w)(?:{known}){between}(?P<value>{value})(?!\w)"


# Words, in small letters, that stand before what they tell.
BORN = (
    "born", "birth", "dob", "d.o.b", "geboren", "geburts", "geb.", "né le", "née le", "naissance",
    "nacid", "nacimiento", "nato il", "nata il", "nascita", "nascid", "nascimento", "geboorte",
)  # fmt: skip
RECORD = (
    "mrn", "medical record", "patient id", "patient no", "patient nu", "patientenn", "case n",
    "case id", "fallnummer", "fall-nr", "aktenzeichen", "insurance n", "policy n", "versicherungsn",
    "sozialversicherungsn",
    "passport", "passnummer", "ausweisnummer", "ausweis-n", "steuer-id", "steuernummer", "tax id",
    "nhs n", "dossier n", "expediente",
)  # fmt: skip
CALL = (
    "call ", "phone", "tel.", "tel:", "tel ", "mobile", "fax", "telefon", "handy", "téléphone",
    "portable", "teléfono", "móvil", "cellulare", "telefoon",
)  # fmt: skip
NUMBER_WORDS = r"[^\W\d]{0,9}\.?(?: (?:no|nr|n°|number|is|at|on|under|unter)\b\.?)*[ :.,(#°-]{0,3}"
DATE = (
    r"(?:\d\d?[./-]\d\d?[./-](?:19|20)?\d\d(?!\d)|(?:19|20)\d\d[./-]\d\d[./-]\d\d(?!\d)"
    r"|\d\d?(?:st|nd|rd|th|\.)? (?:de )?[^\W\d]{3,10}\.? (?:de )?(?:19|20)\d\d"
    r"|[^\W\d]{3,10}\.? \d\d?(?:st|nd|rd|th)?,? (?:19|20)\d\d)"
)
PHONE = "personal-data-phone"
EMAIL = PrivateKind(
    "personal-data-email",
    "e-mail addresses",
    ("@",),
    r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}",
)
# Looked for before a number.
TOLD = (
    PrivateKind(
        "personal-data-birth-date", "dates of birth", BORN, _after(BORN, r"[^\n\d]{0,30}?", DATE)
    ),
    PrivateKind(
        "personal-data-record-number",
        "numbers of records (patient, case, insurance, passport, tax)",
        RECORD,
        _after(RECORD, NUMBER_WORDS, r"[A-Z]{0,3}[ -]?\d(?: ?\d|[A-Z./-]){2,14}\d"),
    ),
    PrivateKind(
        PHONE,
        "telephone numbers",
        CALL,
        _after(CALL, NUMBER_WORDS, r"\+?\(?\d[\d ()./-]{5,18}\d"),
        _is_dialled,
    ),
)
# Looked for around a number of some length.
NUMBERS = (
    PrivateKind(
        "personal-data-card-number",
        "payment card numbers",
        ("",),
        # Not the second, third or fourth group of a bank account.
        r"(?<![A-Z]{2}\d\d )(?<![A-Z]{2}\d\d [A-Z\d]{4} )(?<![A-Z]{2}\d\d(?: [A-Z\d]{4}){2} )"
        r"(?<![\d.+-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|(?:4\d|5[1-5]|2[2-7]|6[05]|35)\d\d([ -]?)"
        r"\d{4}\2\d{4}\2\d{4})(?!\.?\d|-\d)",
        _luhn,
    ),
    PrivateKind(
        "personal-data-iban",
        "bank accounts (IBAN)",
        ("",),
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
        _iban,
    ),
    PrivateKind(
        "personal-data-social-security-number",
        "US social security numbers",
        ("",),
        r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",
    ),
)

# --------------------------------------------------------------------------- telephones

# A writing system, or some of the commonest words of a language -> where most speak it.
COUNTRIES = {
    "Cyrillic": ("RU", "UA"), "Greek": ("GR",), "Japanese": ("JP",), "Han": ("CN", "TW"),
    "Hangul": ("KR",), "Arabic": ("SA", "EG"), "Hebrew": ("IL",), "Thai": ("TH",),
    "Devanagari": ("IN",),
    "the and you with this that have please": ("US", "GB"),
    "der die und nicht mit ich sie bitte": ("DE", "AT"),
    "le les et vous je pour est une": ("FR", "BE"),
    "el los y usted por con para una": ("ES", "MX"),
    "il gli e di che per sono grazie": ("IT", "CH"),
    "o os e você não para com uma": ("BR", "PT"),
    "het een en van ik niet met mijn": ("NL", "BE"),
    "w i na nie się proszę jest do": ("PL",),
    "och jag att det inte är med på": ("SE",),
    "og jeg det ikke er med på til": ("DK", "NO"),
}  # fmt: skip
WORDS = {countries: frozenset(key.split()) for key, countries in COUNTRIES.items() if " " in key}
LANGUAGE_CHARS = 400
BEFORE, LOOKED_AT_CHARS = 40, 1000  # of a row: from before its first such number
# All of so many rows with a number to dial are looked at, half of the next as many, a quarter of
# twice as many: advice may take a tenth of a second.
FIRST_ROWS = 128
OTHER_NUMBERS = re.compile(
    r"(?:\b(?:order|ticket|invoice|article|item|part|serial|tracking|customer|account|ref|reference"
    r"|isbn|issn|doi|sku|ean|konto|commande|facture|pedido|factura|ordine|fattura|code|tax"
    r"|passport)|bestell|auftrag|rechnung|kunden|artikel|sendung|steuer|ausweis|versicherung)"
    r"[\w-]*[ .:#-]*"
    r"(?:(?:no|nr|number|id|is)[.: ]*)?$",
    re.IGNORECASE,
)  # fmt: skip

# Sums, decimals, years, and digits in a row that neither a 0 nor a word marks: prices and numbers
# of orders are written so.
NO_PHONE = re.compile(r".* [/+-] |\+ |\(?-?[\d ]*\.\d+$|\(?[1-9]\d*$|\(?\d{4}-\d{4}$")


def may_be_dialled(before: str, number: str) -> bool:
    """Whether a number, by the character before it, is worth a look."""
    return not NO_PHONE.match(before + number if before in ("+", "(") else number)


class PhoneFinder:
    """Finds telephone numbers in rows with numbers to dial: in the first, then in ever fewer."""

    def __init__(self) -> None:
        self.rows = self.looked_at = 0
        self.spoken: Counter[tuple[str, ...]] = Counter()  # where the language is: signs of it

    def find(self, text: str, start: int) -> str | None:
        """The first telephone number of a row whose first number to dial starts there."""
        self.rows += 1
        if self.rows % (1 << ((self.rows - 1) // FIRST_ROWS).bit_length()):
            return None
        from phonenumbers import PhoneNumberMatcher

        self.looked_at += 1
        begin = max(0, start - BEFORE)
        piece = text[begin : start + LOOKED_AT_CHARS]
        for country in self._countries(text):
            for match in PhoneNumberMatcher(piece, country):
                found = str(match.raw_string)
                if not (NO_PHONE.match(found) or OTHER_NUMBERS.search(piece[: match.start])):
                    return found
        return None

    def _countries(self, text: str) -> tuple[str, ...]:
        """Where the language of the rows seen is spoken; that of English if none is known."""
        script = script_of(text)
        if script in COUNTRIES:
            return COUNTRIES[script]
        words = {*text[:LANGUAGE_CHARS].lower().split()}
        for countries, common in WORDS.items():
            self.spoken[countries] += len(words & common)
        return max(WORDS, key=self.spoken.__getitem__)
