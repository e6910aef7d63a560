"""Where rules and trainers are, in the package or beside it, and how this copy was installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def resource_root() -> Path:
    """The folder that holds `rules/`, `trainers/` and the page for coding agents.

    The wheel carries them in `advisor/_bundled/`, so that site-packages gets no such names.
    """
    bundled = PACKAGE / "_bundled"
    return bundled if (bundled / "rules").is_dir() else PACKAGE.parent


def rules_dir() -> Path:
    """The folder of the shipped rules, facts and catalogues."""
    return resource_root() / "rules"


def docs_page(name: str) -> str:
    """A page that every copy carries: `agents`, how they use it, or `architecture`."""
    return (resource_root() / "docs" / f"{name}.md").read_text("utf-8")


def trainers_root() -> Path:
    """The folder for a child's PYTHONPATH, so that `python -P -m trainers` finds our trainers."""
    return resource_root()


@cache
def method_roots() -> tuple[Path, ...]:
    """The folders that bring methods: the project's own, then those that ADVISE_METHODS names."""
    named = os.environ.get("ADVISE_METHODS", "")
    own = (Path(part).expanduser().resolve() for part in named.split(os.pathsep) if part)
    return (resource_root(), *own)


def cache_folder() -> Path:
    """The folder for what can be made again, below the user's cache folder; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-advisor"


def estimate_methods_dir() -> Path:
    """The folder of the files that count what is special about a method."""
    return PACKAGE / "estimate" / "methods"


NAME = "finetune-advisor"
# Whether this environment is of one call of `uvx`: it lies in uv's cache (CACHE/archive-v0/ID).
UVX = Path(sys.prefix).parent.name.startswith("archive-v")


def install_line(extra: str = "train") -> str:
    """The line that installs an extra from where this copy came from, by the tool that put it here.

    `pip install '/home/me/advisor[train]'`; a copy that does not say its source is of an index.
    """
    source, editable = _source()
    flag = "-e " if editable else ""
    if source and "://" in source:
        wanted = f"{NAME}[{extra}] @ {source}"
    else:
        wanted = f"{'.' if source == str(Path.cwd()) else source or NAME}[{extra}]"
    if UVX or (Path(sys.prefix) / "uv-receipt.toml").is_file():
        return f"uv tool install --force {flag}{shlex.quote(wanted)}"
    return f"pip install {flag}{shlex.quote(wanted)}"


def _source() -> tuple[str | None, bool]:
    """The folder or address, and whether its files are used where they are."""
    found = _direct_url()
    url = str(found.get("url", ""))
    if url.startswith("file:"):
        from urllib.request import url2pathname  # slow to import

        path = url2pathname(unquote(urlsplit(url).path))
        # A wheel that was built for the installation and removed again is no source.
        if Path(path).exists():
            return path, bool(found.get("dir_info", {}).get("editable"))
    elif url:
        kind = found.get("vcs_info", {}).get("vcs")
        return (f"{kind}+{url}" if kind else url), False
    above = PACKAGE.parent
    is_checkout = resource_root() == above and (above / "pyproject.toml").is_file()
    return (str(above), True) if is_checkout else (None, False)


def _direct_url() -> dict[str, Any]:
    """What the installer wrote down of the source (direct_url.json, PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


COMMANDS = ("run", "demo", "chat", "export", "check", "estimate", "probe", "rules", "ui", "mcp")
# In a line to paste; the word stands in sentences and in data as well.
_LINE = re.compile(
    rf"(?<![\w./-])advise(?= (?:{'|'.join(COMMANDS)})\b| --[a-z])"
    r"|(?<=`)advise(?=`)|(?<=^  )advise(?=$)",
    re.MULTILINE,
)


def as_called(text: str) -> str:
    """The text with each line to paste as it works in this shell: `.venv/bin/advise run plan.yaml`
    where that is how the program was called and `advise` alone is not found.
    """
    if "advise" not in text or not sys.argv[0].endswith(("/advise", f"/{NAME}")):
        return text
    from shutil import which

    if which("advise") and not UVX:  # its path is not the person's
        return text
    words = ["uvx", "--from", _source()[0] or NAME, NAME] if UVX else [sys.argv[0]]
    return _LINE.sub(lambda _: shlex.join(words), text)
