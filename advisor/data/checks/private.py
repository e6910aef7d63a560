"""Secrets and personal data in texts: suspected, counted, and only ever shown masked.

A suspicion, no proof: patterns with a check digit if there is one. A model repeats what it was
trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from advisor.data.checks import RowCheck, SeenRow, Subject, findings_of
from advisor.data.checks.personal import (
    EMAIL,
    NUMBERS,
    PHONE,
    TOLD,
    PhoneFinder,
    PrivateKind,
    may_be_dialled,
)
from advisor.ground.types import DataFinding

# Expressions are compiled where they are needed: nearly no data need any.
DIGITS = r"[0-9][0-9 .()/-]{2,}[0-9]"  # every number that may tell something
LONG_CHARS = 8  # of the shortest card, account or telephone
AROUND_CHARS = 72  # where a word may say what a number is, or an account begins
PLACEHOLDER = r"(?i)xxx|your|placeholder|changeme|redacted|\*\*\*|<|>|\{|\$"


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
    EMAIL,
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
        self.latest: dict[str, int] = {}  # by the kind: the last row with one
        self.phones = PhoneFinder()

    def see(self, row: SeenRow) -> None:
        text = row.text
        self._search(KINDS, text, row.number)
        numbers = [number.span() for number in re.finditer(DIGITS, text)]
        if not numbers:
            return
        pieces = [text]
        if 2 * AROUND_CHARS * len(numbers) < len(text):
            pieces = [
                text[max(0, start - AROUND_CHARS) : end + AROUND_CHARS] for start, end in numbers
            ]
        long = [(start, end) for start, end in numbers if end - start > LONG_CHARS]
        for piece in pieces:
            self._search(TOLD, piece, row.number, piece.lower())
            if long:
                self._search(NUMBERS, piece, row.number)
        for start, end in long:
            if may_be_dialled(text[start - 1 : start], text[start:end]):
                if found := self.phones.find(text, start):
                    self._note(PHONE, found, row.number)
                break

    def _search(self, kinds: tuple[PrivateKind, ...], text: str, row: int, low: str = "") -> None:
        for kind in kinds:
            for sign in kind.needs:
                if sign in (low or text):
                    break
            else:  # nearly always
                continue
            for match in re.finditer(kind.pattern, text):
                found = match.groupdict().get("value") or match[0]
                if kind.holds(found):
                    self._note(kind.id, found, row)
                    break

    def _note(self, kind: str, found: str, row: int) -> None:
        if self.latest.get(kind) != row:
            self.latest[kind] = row
            self.tallies[kind].add(row)
            self.shown.setdefault(kind, mask(found, kind))

    def findings(self) -> Iterator[DataFinding]:
        for kind in (*KINDS, *TOLD, *NUMBERS):
            tally, phones = self.tallies[kind.id], self.phones
            risk = (
                "remove and change them: models repeat them"
                if kind.id.startswith("secret")
                else "a model may repeat them"
            )
            what = f"what looks like {kind.name}, such as {self.shown.get(kind.id)}: {risk}"
            if kind.id == PHONE and phones.looked_at < phones.rows:
                left = phones.rows - phones.looked_at
                what += f"; {left:,} more rows with long numbers were not looked at"
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
