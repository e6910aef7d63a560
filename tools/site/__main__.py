"""`python -m tools.site --out DIR`: the page as a folder for any web server, at any address.

Pyodide is fetched once by npm, into the user's cache folder, or given by --pyodide. Nothing in the
folder asks for a file from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from advisor.commands.page_html import content, page_html, site_folder
from advisor.ground.errors import AdviseError, InputError
from tools.site.core import write_python
from tools.site.models import chosen, pages

MB = 1_000_000
# Python is WebAssembly, which a page has to allow by name. Nothing is sent anywhere.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
# Answers in the page are those of a machine where nobody has trained or set anything.
NOTHING_OF_HERE = {
    "ADVISE_RUNS": "off",
    "ADVISE_RULES": "",
    "ADVISE_METHODS": "",
    "HF_HUB_OFFLINE": "1",
}
SCRIPTS = ("static/static.js",)


def build(out: Path, pyodide: Path | None, models: Sequence[str]) -> None:
    """Write the whole folder. Raises AdviseError if it is there, or a part cannot be had."""
    for name, value in NOTHING_OF_HERE.items():
        os.environ[name] = value
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", where="--out", hint="name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site-") as folder:
        made, stage = Path(folder) / "made", Path(folder) / "stage"
        static = made / "static"
        static.mkdir(parents=True)
        for path in sorted(site_folder().iterdir()):
            if path.suffix in (".css", ".js", ".mjs", ".svg") and path.name != "served.js":
                shutil.copyfile(path, static / path.name)
        opening = write_python(static, stage, pyodide, content()["example"])
        (made / "index.html").write_text(page_html("static", SCRIPTS, POLICY, opening), "utf-8")
        (made / "models").mkdir()
        for name, text in pages(models):
            (made / "models" / name).write_text(text, "utf-8")
        if out.is_dir():
            out.rmdir()
        made.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pyodide", type=Path, metavar="DIR", help="Pyodide's files")
    parser.add_argument(
        "--models", type=int, metavar="N", help="pages for the first N models alone: a trial"
    )
    given = parser.parse_args()
    try:
        build(given.out, given.pyodide, chosen()["models"][: given.models])
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        return error.exit_code
    sizes = {
        path.relative_to(given.out).as_posix(): path.stat().st_size
        for path in sorted(given.out.rglob("*"))
        if path.is_file()
    }
    for name, size in sizes.items():
        if not name.startswith("models/"):
            print(f"{size / MB:8.3f} MB  {name}")
    listed = [size for name, size in sizes.items() if name.startswith("models/")]
    print(
        f"{sum(listed) / MB:8.3f} MB  models/: {len(listed)} pages, at most {max(listed):,} bytes"
    )
    print(f"{sum(sizes.values()) / MB:8.3f} MB  {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
