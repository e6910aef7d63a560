"""docs/ as pages beside the live one, by Zensical (zensical.toml), which ask no other host."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from advisor.ground.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")  # a link to a file beside docs/
BACK = "\n[Ask here, in the browser](../index.html), without an installation.\n"


def write_documents(out: Path, back: str = "") -> bool:
    """Write them into a new folder; False: Zensical is not installed.

    Args:
        back: What is put at the end of the first page.
    """
    if find_spec("zensical") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="documents-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "zensical.toml", folder)
        shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("rules"))
        for page in (folder / "docs").glob("*.md"):
            page.write_text(
                OUTSIDE.sub(lambda link: _brought(link, folder / "docs"), page.read_text("utf-8")),
                "utf-8",
            )
        with (folder / "docs" / "index.md").open("a", encoding="utf-8") as first:
            first.write(back)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(f"zensical: {done.stdout}{done.stderr}", where="docs/")
        shutil.copytree(folder / "build" / "site", out)
    return True


def _brought(link: re.Match[str], docs: Path) -> str:
    """A link to a copy of the file, as text; of a folder its words alone."""
    source = ROOT / link[2]
    if not source.is_file():
        return link[1]
    copy = Path("files", f"{link[2]}.txt")
    (docs / copy).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, docs / copy)
    return f"[{link[1]}]({copy})"
