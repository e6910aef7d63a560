"""Secrets and personal data in texts: suspected, counted, and only ever shown masked.

A suspicion, no proof: patterns with a check digit where there is one. A model repeats what it was
trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

SHOWN_ROWS = 20
_DIGITS = re.compile(r"[0-9][0-9 .()/-]{7,}[0-9]")  # every number looked for
_PLACEHOLDER = re.compile(r"(?i)xxx|your|placeholder|changeme|redacted|\*\*\*|<|>|\{|\$")


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
        and not _PLACEHOLDER.search(text)
    )


def _is_password(text: str) -> bool:
    value = re.split(r"[:=]\s*", text, maxsplit=1)[-1].strip("\"'")
    kinds = sum((any(map(str.isdigit, value)), any(map(str.isalpha, value)), not value.isalnum()))
    return (
        kinds >= 2 and not _PLACEHOLDER.search(value) and not value.endswith((")", "(", ";", ","))
    )


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of secret or personal datum."""

    id: str
    name: str
    secret: bool
    needs: tuple[str, ...]  # a text without any of these cannot hold one
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = _always
    beside: tuple[str, ...] = ()  # and one of these


KINDS = (
    Kind(
        "private-key",
        "private keys",
        True,
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    ),
    Kind(
        "aws-key",
        "AWS access keys",
        True,
        ("AKIA", "ASIA"),
        re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ),
    Kind(
        "api-key",
        "API keys",
        True,
        ("sk-", "AIza", "xox"),
        re.compile(
            r"\b(?:sk-[A-Za-z0-9_-]{20,}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})"
        ),
        _is_key,
    ),
    Kind(
        "access-token",
        "access tokens",
        True,
        ("ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "hf_", "eyJ"),
        re.compile(
            r"\b(?:gh[posu]_[A-Za-z0-9]{36}|github_pat_\w{40,}|glpat-[\w-]{20}|hf_[A-Za-z0-9]{30,}"
            r"|(?<!-)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
        lambda text: not _PLACEHOLDER.search(text),
    ),
    Kind(
        "password",
        "passwords",
        True,
        ("assword", "ASSWORD", "passwd", "api_key", "API_KEY", "secret_key", "SECRET_KEY"),
        re.compile(
            r"\b(?:[Pp]assword|PASSWORD|passwd|[Aa]pi_[Kk]ey|API_KEY|[Ss]ecret_[Kk]ey|SECRET_KEY)\b"
            r"\s?(?:is\s?)?[:=]\s?[\"']?[^\s\"',;]{8,64}"
        ),
        _is_password,
        (":", "="),
    ),
    Kind(
        "credentials-in-url",
        "addresses with a password in them",
        True,
        ("://",),
        re.compile(r"\b\w{2,10}://[^\s/:@]{1,60}:[^\s/:@]{3,60}@[\w.-]+"),
        _is_key,
    ),
    Kind(
        "email",
        "e-mail addresses",
        False,
        ("@",),
        re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}"),
    ),
)
NUMBERS = (
    Kind(
        "card-number",
        "payment card numbers",
        False,
        (),
        re.compile(
            r"(?<![\d.+-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|(?:4\d|5[1-5]|2[2-7]|6[05]|35)\d\d(["
            r" -]?)\d{4}\2\d{4}\2\d{4})(?!\.?\d|-\d)"
        ),
        _luhn,
    ),
    Kind(
        "iban",
        "bank accounts (IBAN)",
        False,
        (),
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        _iban,
    ),
    Kind(
        "social-security-number",
        "US social security numbers",
        False,
        (),
        re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    ),
    Kind(
        "phone",
        "telephone numbers",
        False,
        (),
        re.compile(
            r"(?<![\d.+-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,5}\)?[ ./-]?){1,4}\d{3,8}|\(\d{3}\) ?\d{3}["
            r" .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\d.-]?\d)"
        ),
        lambda text: 9 <= sum(map(str.isdigit, text)) <= 15,
    ),
)


@dataclass(slots=True)
class Suspects:
    """Rows that seem to hold something private, by kind.

    Numbers (cards, accounts, telephones) only where asked: they cost most of the time.
    """

    numbers: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)  # the first of each kind, masked

    def look(self, text: str, row: int) -> None:
        """Notes what a row's text seems to hold."""
        # One expression, since it is asked of every row: most hold none of these.
        if (
            "@" in text or "_" in text or "-" in text or "://" in text or "assword" in text
            or "AKIA" in text or "ASIA" in text or "AIza" in text or "eyJ" in text
            or "passwd" in text or "ASSWORD" in text
        ):  # fmt: skip
            for kind in KINDS:
                for sign in kind.needs:
                    if sign in text:
                        if not kind.beside or any(mark in text for mark in kind.beside):
                            self._search(kind, text, row)
                        break
        if self.numbers and _DIGITS.search(text):
            for kind in NUMBERS:
                self._search(kind, text, row)

    def _search(self, kind: Kind, text: str, row: int) -> None:
        found = next(
            (match.group() for match in kind.pattern.finditer(text) if kind.holds(match.group())),
            None,
        )
        if found is None:
            return
        self.counts[kind.id] = self.counts.get(kind.id, 0) + 1
        rows = self.rows.setdefault(kind.id, [])
        if len(rows) < SHOWN_ROWS:
            rows.append(row)
        self.shown.setdefault(kind.id, mask(found, kind.id))


def mask(text: str, kind: str) -> str:
    """A hint at what was found that gives nothing away: its first characters and its length in
    stars.
    """
    if kind == "email":
        name, _, host = text.partition("@")
        return f"{name[:1]}***@{host[:1]}***.{host.rsplit('.', 1)[-1]}"
    if kind == "private-key":
        return "-----BEGIN … PRIVATE KEY-----"
    if kind in ("password", "credentials-in-url"):
        head = re.split(r"[:=]", text, maxsplit=1)[0]
        return f"{head}: ***"
    kept = 4 if kind in ("aws-key", "api-key", "access-token", "iban") else 2
    return text[:kept] + "*" * min(12, max(3, len(text) - kept))
