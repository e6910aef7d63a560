"""Text of other people on a terminal: nothing in it moves the cursor, changes colours, reorders the
words, stays invisible, or repeats a secret.

Names, values, paths and the messages of libraries are shown with such characters as their escapes
(`\\x1b`, `\\u202e`). Our own colours and progress bars are added after that (console.py).

A plan and its answers are copied into the run folder and into the report, which is made to be
forwarded: a secret in them is refused, and a message that quotes one has it masked.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from advisor.ground.resources import as_called

# Everything but plain ASCII, line breaks and tabs is looked at.
_SUSPECT = re.compile(r"[^ -~\n\t]")
# Zero width (non-)joiners: Persian, Indian scripts and emoji are misspelt without them; next to an
# ASCII letter they only hide.
_JOINERS = "\u200c\u200d"


def shown(text: str) -> str:
    """The text as a person may see it; line breaks and tabs stay.

    Escaped are control characters, marks of writing direction, separators of lines, characters
    without width, and what is no character at all.
    """
    return text if text.isprintable() else _SUSPECT.sub(_escape, text)


def json_shown(text: str) -> str:
    """The text of a JSON document with such characters as JSON's escapes; its values are equal."""
    return text if text.isprintable() else _SUSPECT.sub(_json_escape, text)


def one_line(text: str, columns: int) -> str:
    """A text on one line, at most so many columns wide, safe on a terminal."""
    line = shown(" ".join(text[: 4 * columns].split()))
    if width_of(line) <= columns:
        return line
    kept = list(line[:columns])
    while width_of("".join(kept)) > columns - 3:
        kept.pop()
    return f"{''.join(kept).rstrip()}..."


def width_of(text: str) -> int:
    """Columns of a terminal: letters of Chinese, Japanese and Korean take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def _is_shown(found: re.Match[str]) -> bool:
    sign = found[0]
    if sign in _JOINERS:
        around = found.string[max(0, found.start() - 1) : found.end() + 1]
        return len(around) == 3 and not around[0].isascii() and not around[2].isascii()
    return sign.isprintable() or (sign >= "\xa0" and sign.isspace() and sign not in "\u2028\u2029")


def _escape(found: re.Match[str]) -> str:
    return found[0] if _is_shown(found) else repr(found[0])[1:-1]


def _json_escape(found: re.Match[str]) -> str:
    sign = found[0]
    escaped = f"\\u{ord(sign):04x}" if ord(sign) < 0x80 else json.dumps(sign)[1:-1]
    return sign if _is_shown(found) else escaped


# --------------------------------------------------------------------------- streams

# tqdm, which libraries show progress with: back to the start of the line, or some lines up.
_MOVES = re.compile(r"\r?|(?:\n|\x1b\[A)+")


class ShownStream:
    """A text stream that shows what is written to it, and is the stream below in all else.

    The last line of defence: whatever a library prints, its warnings and logs included, goes
    through here. A carriage return is left alone where a progress bar puts it.

    What is written to a terminal that was closed is dropped: nobody can read it, and a run that is
    asked to stop still has to save its last step.
    """

    def __init__(self, below: TextIO) -> None:
        self.below = below
        self.is_terminal = is_terminal(below)

    def write(self, text: str) -> int:
        """Write the text, escaped. Returns its length, as given."""
        start = text if _MOVES.fullmatch(text) else "\r" if text.startswith("\r") else ""
        with self._unless_closed():
            self.below.write(start + shown(text[len(start) :]))
        return len(text)

    def flush(self) -> None:
        """Let the stream below write what it holds."""
        with self._unless_closed():
            self.below.flush()

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO or not self.is_terminal:
                raise
            self.below = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):  # no stream of Python's, or closed
        return False


def print_message(text: str) -> None:
    """Print a message on standard error, on a terminal broken between words."""
    said = shown(as_called(text))
    if is_terminal(sys.stderr):
        from advisor.ground.wrap import on_lines  # for people alone

        said = on_lines(said)
    print(said, file=sys.stderr, flush=True)


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    print_message(f"warning: {text}")


def show_streams() -> None:
    """Let stdout and stderr, and logs that go there, show what is written to them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, ShownStream):
            setattr(sys, name, ShownStream(stream))
            _redirect_logs(stream, getattr(sys, name))


def _redirect_logs(before: Any, after: Any) -> None:
    logging = sys.modules.get("logging")  # not loaded: its handlers will find the new stream
    if logging is None:
        return
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):  # a place holder has none
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(after)


# --------------------------------------------------------------------------- secrets

# A key with one of these names, alone or after another word, holds a secret. Not `eos_token`,
# `pad_token` and the like, which are texts of a tokenizer, nor counts of tokens.
_KEY = re.compile(
    r"(?:.*_)?(?:api_?key|password|passwd|secret|secret_?key|private_?key|access_?key|credentials?"
    r"|(?:hub|hf|auth|access|api|bearer|refresh|github|wandb)_?token)|token",
    re.IGNORECASE,
)
# Keys whose values look like secrets and are none: 40 hexadecimal digits name a commit.
_DIGEST_KEY = re.compile(r"revision|commit|digest|sha|hash|fingerprint", re.IGNORECASE)
_OWN_NAMES = ("tasks", "mapping", "data_mapping")  # maps whose keys are the user's own words
_DIGEST = re.compile(r"[0-9a-f]{40}")  # what Weights & Biases gave out for years

# The form of a value -> the variable of the environment that its libraries read.
_FORMS = (
    (r"\bhf_[A-Za-z0-9]{30,}", "HF_TOKEN"),
    # Sixteen letters and digits on end: sk-some-words-of-2026 is the name of a file.
    (
        r"(?<![\w-])sk-(?:[\w-]{0,20}[_-])?(?=[A-Za-z]{0,99}\d)[A-Za-z0-9]{16,}[\w-]*",
        "OPENAI_API_KEY",
    ),
    (r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}", "GITHUB_TOKEN"),
    (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "AWS_ACCESS_KEY_ID"),
    (r"\bglpat-[\w-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{35}", ""),
    (r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}", ""),
    (r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----", ""),
)
_ADDRESS = r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"  # user:password before a host
_ANY = re.compile("|".join([*(form for form, _ in _FORMS), _ADDRESS]))
_VARIABLES = {
    "hub": "HF_TOKEN",
    "hf": "HF_TOKEN",
    "wandb": "WANDB_API_KEY",
    "openai": "OPENAI_API_KEY",
}
MASK = "***"


def mask_secrets(text: str) -> str:
    """The text with everything that has the form of a secret replaced by ***."""
    return _ANY.sub(MASK, text)


def is_secret_key(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return _KEY.fullmatch(name) is not None


def find_secrets(
    data: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path, variable of the environment that holds such a secret, or '') of each secret."""
    if isinstance(data, dict):
        for key, part in data.items():
            yield from find_secrets(part, (*path, str(key)))
    elif isinstance(data, list | tuple):
        for number, part in enumerate(data):
            yield from find_secrets(part, (*path, number))
    elif data is not None and not isinstance(data, bool) and data != "":
        variable = _variable(str(data), path)
        if variable is not None:
            yield path, variable


def _variable(text: str, path: tuple[str | int, ...]) -> str | None:
    """The variable that a secret belongs into, '' if none is known; None: it is no secret."""
    for form, variable in _FORMS:
        if re.search(form, text):
            return variable
    if re.search(_ADDRESS, text):
        return ""
    names = [step for step in path if isinstance(step, str)]
    key = names[-1] if names else ""
    if len(names) > 1 and names[-2] in _OWN_NAMES:
        return None
    if is_secret_key(key):
        return next((name for word, name in _VARIABLES.items() if word in key.lower()), "")
    if _DIGEST.fullmatch(text) and not _DIGEST_KEY.search(key):
        return "WANDB_API_KEY"
    return None
