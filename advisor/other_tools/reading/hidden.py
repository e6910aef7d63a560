"""Secrets in a configuration of another tool: they are taken out as it is read.

Such a file may well hold a token, which is nobody's business here: pages, JSON, diffs and plans are
copied into issues. So the value is replaced before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advisor.ground.secrets import MASK, find_secrets, is_secret_key
from advisor.ground.yaml_reader import Path_
from advisor.other_tools.reading.tool_file import changed

# Words of a variable's name; alone or joined by `_`.
_WORDS = {
    "APIKEY", "AUTH", "BEARER", "CONNECTION", "COOKIE", "CRED", "CREDENTIAL", "CREDENTIALS",
    "CREDS", "DSN", "HOOK", "KEY", "PASS", "PASSPHRASE", "PASSWD", "PASSWORD", "PAT", "PRIVATE",
    "PWD", "SALT", "SECRET", "SESSION", "SIGNATURE", "TOKEN", "TOKENS", "URI", "URL", "WEBHOOK",
}  # fmt: skip
_FOLDERS = ("PWD", "OLDPWD")


def secret_paths(values: Mapping[str, Any]) -> set[Path_]:
    """Where secrets stand: by the form of a value, or by the name of its key or one around it."""
    return {path for path, _ in find_secrets(values)} | set(_below(values, (), False))


def _below(value: Any, path: Path_, inside: bool) -> Iterator[Path_]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _below(part, (*path, key), inside or is_secret_key(str(key)))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _below(part, (*path, place), inside)
    elif inside and value is not None and not isinstance(value, bool) and value != "":
        yield path


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with *** for each secret."""
    found: Any = dict(values)
    for path in secret_paths(values):
        found = changed(found, path, MASK)
    return dict(found)


def may_be_shown(name: str, value: str) -> bool:
    """Whether a variable of the environment may be read for a file, whose pages show it."""
    words = set(name.upper().split("_"))
    secret = bool(words & _WORDS) or any(
        word in name.upper() for word in ("SECRET", "PASSW", "TOKEN", "APIKEY")
    )
    return (not secret or name in _FOLDERS) and not list(find_secrets({name: value}))
