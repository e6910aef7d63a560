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
from html import escape
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
NOTHING_OF_HERE = {"ADVISE_RUNS": "off", "ADVISE_RULES": "", "ADVISE_METHODS": "",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
FILES = (".css", ".js", ".mjs", ".svg", ".png")  # of site/, as they are


def build(out: Path, pyodide: Path | None, models: Sequence[str], address: str | None) -> None:
    """Write the whole folder. Raises AdviseError if it is there, or a part cannot be had."""
    os.environ |= NOTHING_OF_HERE
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", where="--out", hint="name a new folder")
    if address is not None and not address.startswith("https://"):
        raise InputError("no address of a page", where="--address", allowed="https://...")
    picture = f"{address.rstrip('/')}/static/preview.png" if address else ""
    meta = f'<meta property="og:image" content="{escape(picture)}" />' if picture else ""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site-") as folder:
        made = Path(folder, "made")
        (made / "models").mkdir(parents=True)
        ignored = [path.name for path in site_folder().iterdir() if path.suffix not in FILES]
        shutil.copytree(site_folder(), made / "static", ignore=lambda *_: ignored)
        opening = write_python(made / "static", pyodide, content()["example"])
        page = page_html("static", POLICY, opening).replace("</head>", f"{meta}</head>", 1)
        (made / "index.html").write_text(page, "utf-8")
        for name, text in pages(models, picture):
            (made / "models" / name).write_text(text, "utf-8")
        made.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        made.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pyodide", type=Path, metavar="DIR", help="the two files that it fetches")
    parser.add_argument(
        "--address", metavar="URL", help="where it will be: links to it then have a preview picture"
    )
    parser.add_argument(
        "--models", type=int, metavar="N", help="pages for the first N models alone: a trial"
    )
    given = parser.parse_args()
    try:
        build(given.out, given.pyodide, chosen()["models"][: given.models], given.address)
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        return error.exit_code
    sizes = {path: path.stat().st_size for path in given.out.rglob("*") if path.is_file()}
    listed = [size for path, size in sizes.items() if path.parent.name == "models"]
    print(f"{len(listed)} pages of models, at most {max(listed):,} bytes")
    print(f"{sum(sizes.values()) / MB:.1f} MB  {given.out}")
    if given.address is None:
        print("no preview picture: it needs an absolute address, --address https://...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
