"""`python -m tools.site --out DIR`: the page as a folder for any web server, at any address.

Pyodide is fetched once by npm, into the user's cache folder, or given by --pyodide. Nothing in the
folder asks for a file from elsewhere.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from advisor.commands.page_html import page_html, site_folder
from advisor.ground.errors import AdviseError, InputError
from tools.site.core import write_python

MB = 1_000_000
# Python is WebAssembly, which a page has to allow by name. Nothing is sent anywhere.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
SCRIPTS = ("static/static.js",)


def build(out: Path, pyodide: Path | None) -> None:
    """Write the whole folder. Raises AdviseError if it is there, or a part cannot be had."""
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
        write_python(static, stage, pyodide)
        (made / "index.html").write_text(page_html("static", SCRIPTS, POLICY), "utf-8")
        if out.is_dir():
            out.rmdir()
        made.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pyodide", type=Path, metavar="DIR", help="Pyodide's files")
    given = parser.parse_args()
    try:
        build(given.out, given.pyodide)
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        return error.exit_code
    sizes = {
        path.relative_to(given.out).as_posix(): path.stat().st_size
        for path in sorted(given.out.rglob("*"))
        if path.is_file()
    }
    for name, size in sizes.items():
        print(f"{size / MB:8.3f} MB  {name}")
    print(f"{sum(sizes.values()) / MB:8.3f} MB  {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
