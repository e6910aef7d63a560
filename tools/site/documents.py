"""docs/ as pages beside the live one, by Zensical (zensical.toml), which ask no other host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from advisor.ground.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(
    r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)"
)  # to a file of the repository
# Text shone through the head, and the name of the page that is open had a contrast of 3.8.
STYLE = """.md-header { background-color: var(--md-default-bg-color); }
.md-nav__link--active { color: var(--md-default-fg-color) !important; }
"""
BACK = "\n[Ask here, in the browser](../index.html), without an installation.\n"


def write_documents(out: Path, back: str = "") -> bool:
    """Write them into a new folder; False: Zensical is not installed.

    Args:
        back: What is put at the end of the first page.

    Raises InputError if they cannot be built.
    """
    if find_spec("zensical") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="documents-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "zensical.toml", folder)
        shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("rules"))
        (folder / "docs" / "site.css").write_text(STYLE)
        _write_pages(folder / "docs")
        with (folder / "docs" / "index.md").open("a", encoding="utf-8") as first:
            first.write(back)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(f"zensical: {done.stdout}{done.stderr}", where="docs/")
        shutil.copytree(folder / "build" / "site", out)
    return True


def _write_pages(docs: Path) -> None:
    """The pages of docs/, and every other page of the repository that a link leads to."""
    todo = [f"docs/{path.name}" for path in docs.glob("*.md")]
    for name in todo:  # it grows
        folder, place = Path(name).parent, _place(name)

        def led(link: re.Match[str], folder: Path = folder, place: str = place) -> str:
            target = os.path.normpath(folder / link[2])
            to = _place(target)
            if not (ROOT / target).is_file():
                return link[1].strip("[]")  # a folder has no page
            if target.endswith(".md"):
                todo.extend({target} - {*todo})
            elif not (docs / to).exists():
                (docs / to).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / target, docs / to)
            return f"{link[1]}({os.path.relpath(to, Path(place).parent)}{link[3] or ''})"

        (docs / place).parent.mkdir(parents=True, exist_ok=True)
        (docs / place).write_text(LINK.sub(led, (ROOT / name).read_text("utf-8")), "utf-8")


def _place(name: str) -> str:
    """Where a file of the repository is in the site: pages as pages, others as text."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    path = Path(name)
    if path.suffix == ".md":  # a README would be the first page of its folder
        return str(path.with_name("about.md") if path.stem == "README" else path)
    # Zensical leaves out what is hidden.
    return name if path.suffix in (".svg", ".png") else f"files/{name.lstrip('.')}.txt"
