"""Secrets and personal data in texts: suspected, counted, and only ever shown masked.

A suspicion, no proof: patterns with a check digit if there is one. A model repeats what it was
trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from msgspec import Struct

from advisor.data.checks import RowCheck, SeenRow, Subject, findings_of
from advisor.ground.types import DataFinding

# Expressions are compiled where they are needed: nearly no data need any.
DIGITS = r"[0-9][0-9 .()/-]{7,}[0-9]"  # every number looked for
PLACEHOLDER = r"(?i)xxx|your|placeholder|changeme|redacted|\*\*\*|<|>|\{|\$"


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


def _is_key(text: str) -> bool:
    """A name such as sk-long-words-with-dashes is no key."""
    body = text.split("-", 1)[-1]
    return (
        any(character.isdigit() for character in body)
        and any(character.isalpha() for character in body)
        and not re.search(PLACEHOLDER, text)
    )


def _is_password(text: str) -> bool:
    value = re.split(r"[:=]\s*", text, maxsplit=1)[-1].strip("\"'")
    kinds = sum((any(map(str.isdigit, value)), any(map(str.isalpha, value)), not value.isalnum()))
    return (
        kinds >= 2
        and not re.search(PLACEHOLDER, value)
        and not value.endswith((")", "(", ";", ","))
    )


class PrivateKind(Struct, frozen=True):
    """One sort of secret or personal datum."""

    id: str
    name: str
    needs: tuple[str, ...]  # a text without any of these cannot hold one
    pattern: str
    holds: Callable[[str], bool] = bool


KINDS = (
    PrivateKind(
        "secret-private-key",
        "private keys",
        ("PRIVATE KEY",),
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    ),
    PrivateKind(
        "secret-aws-key", "AWS access keys", ("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    ),
    PrivateKind(
        "secret-api-key",
        "API keys",
        ("sk-", "AIza", "xox"),
        r"\b(?:sk-[A-Za-z0-9_-]{20,}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})",
        _is_key,
    ),
    PrivateKind(
        "secret-access-token",
        "access tokens",
        ("ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "hf_", "eyJ"),
        r"\b(?:gh[posu]_[A-Za-z0-9]{36}|github_pat_\w{40,}|glpat-[\w-]{20}|hf_[A-Za-z0-9]{30,}"
        r"|(?<!-)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})",
        lambda text: not re.search(PLACEHOLDER, text),
    ),
    PrivateKind(
        "secret-password",
        "passwords",
        ("assword", "ASSWORD", "passwd", "api_key", "API_KEY", "secret_key", "SECRET_KEY"),
        r"\b(?:[Pp]assword|PASSWORD|passwd|[Aa]pi_[Kk]ey|API_KEY|[Ss]ecret_[Kk]ey|SECRET_KEY)\b"
        r"\s?(?:is\s?)?[:=]\s?[\"']?[^\s\"',;]{8,64}",
        _is_password,
    ),
    PrivateKind(
        "secret-credentials-in-url",
        "addresses with a password in them",
        ("://",),
        r"\b\w{2,10}://[^\s/:@]{1,60}:[^\s/:@]{3,60}@[\w.-]+",
        _is_key,
    ),
    PrivateKind(
        "personal-data-email",
        "e-mail addresses",
        ("@",),
        r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}",
    ),
)
# Looked for if asked, in texts with a number of some length: they cost most of the time.
NUMBER = ("",)
NUMBERS = (
    PrivateKind(
        "personal-data-card-number",
        "payment card numbers",
        NUMBER,
        r"(?<![\d.+-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|(?:4\d|5[1-5]|2[2-7]|6[05]|35)\d\d([ -]?)"
        r"\d{4}\2\d{4}\2\d{4})(?!\.?\d|-\d)",
        _luhn,
    ),
    PrivateKind(
        "personal-data-iban",
        "bank accounts (IBAN)",
        NUMBER,
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
        _iban,
    ),
    PrivateKind(
        "personal-data-social-security-number",
        "US social security numbers",
        NUMBER,
        r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",
    ),
    PrivateKind(
        "personal-data-phone",
        "telephone numbers",
        NUMBER,
        r"(?<![\d.+-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,5}\)?[ ./-]?){1,4}\d{3,8}|\(\d{3}\) ?\d{3}[ .-]"
        r"\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\d.-]?\d)",
        lambda text: 9 <= sum(map(str.isdigit, text)) <= 15,
    ),
)


class PrivateData(RowCheck):
    """Rows that seem to hold something private, by kind, and the first of each, masked.

    Secrets are a warning each; personal data are a warning by kind, since a support file may well
    hold some.
    """

    place = 60

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.shown: dict[str, str] = {}

    def see(self, row: SeenRow) -> None:
        text = row.text
        self._search(KINDS, text, row.number)
        if self.about.thorough and re.search(DIGITS, text):
            self._search(NUMBERS, text, row.number)

    def _search(self, kinds: tuple[PrivateKind, ...], text: str, row: int) -> None:
        for kind in kinds:
            for sign in kind.needs:
                if sign in text:
                    break
            else:  # nearly always
                continue
            found = (match[0] for match in re.finditer(kind.pattern, text))
            first = next(filter(kind.holds, found), None)
            if first is not None:
                self.tallies[kind.id].add(row)
                self.shown.setdefault(kind.id, mask(first, kind.id))

    def findings(self) -> Iterator[DataFinding]:
        for kind in (*KINDS, *NUMBERS):
            tally = self.tallies[kind.id]
            risk = (
                "take them out and change them: a model repeats what it was trained on"
                if kind.id.startswith("secret")
                else "a model may repeat them"
            )
            what = f"what looks like {kind.name}, such as {self.shown.get(kind.id)}: {risk}"
            yield from findings_of(tally, kind.id, "warning", f"{tally.in_words} with {what}")


def mask(text: str, kind: str) -> str:
    """A hint at what was found that gives nothing away: first characters, length in stars."""
    if kind == "personal-data-email":
        name, _, host = text.partition("@")
        return f"{name[:1]}***@{host[:1]}***.{host.rsplit('.', 1)[-1]}"
    if kind == "secret-private-key":
        return "-----BEGIN … PRIVATE KEY-----"
    if kind in ("secret-password", "secret-credentials-in-url"):
        head = re.split(r"[:=]", text, maxsplit=1)[0]
        return f"{head}: ***"
    kept = 2 if kind.startswith("personal-data") else 4
    return text[:kept] + "*" * min(12, max(3, len(text) - kept))
