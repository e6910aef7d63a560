"""Secrets in what people write: found by the name of a key or the form of a value, never repeated.

A plan and its answers are copied into the run folder and into the report, which is made to be
forwarded. So a secret in them is refused, and a message that quotes one has it masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

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


def masked(text: str) -> str:
    """The text with everything that has the form of a secret replaced by ***."""
    return _ANY.sub(MASK, text)


def is_secret_key(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return _KEY.fullmatch(name) is not None


def find_secrets(data: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path, variable of the environment that the secret belongs into, or '') of each secret in
    plain data.
    """
    yield from _find(data, ())


def _find(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _find(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _find(part, (*path, number))
    elif value is not None and not isinstance(value, bool) and value != "":
        variable = _variable(str(value), path)
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
