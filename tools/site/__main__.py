"""`python -m tools.site --out DIR`: the page as a folder for any web server, at any address.

Pyodide is fetched once by npm, into the user's cache folder, or given by --pyodide. Nothing in the
folder asks for a file from elsewhere.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from advisor.commands.page_html import content, page_html, site_folder, tag
from advisor.ground.errors import AdviseError, InputError
from tools.site.core import write_python
from tools.site.documents import BACK, write_documents
from tools.site.models import chosen, pages

# Answers in the page are those of a machine where nobody has trained or set anything.
NOTHING_OF_HERE = {"ADVISE_RUNS": "off", "ADVISE_RULES": "", "ADVISE_METHODS": "",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
IGNORED = shutil.ignore_patterns("*.html", "*.json")  # of site/; the rest is copied
FOLDER = click.Path(path_type=Path)


def build(out: Path, pyodide: Path | None, models: int | None, address: str) -> None:
    """Write the whole folder. Raises AdviseError if it is there, or a part cannot be had."""
    os.environ |= NOTHING_OF_HERE
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", where="--out", hint="name a new folder")
    if address and not address.startswith("https://"):
        raise InputError("no address of a page", where="--address", allowed="https://...")
    picture = f"{address.rstrip('/')}/static/preview.png" if address else ""
    head = tag("meta", property="og:image", content=picture) if picture else ""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site-") as folder:
        made = Path(folder, "made")
        (made / "models").mkdir(parents=True)
        shutil.copytree(site_folder(), made / "static", ignore=IGNORED)
        opening = write_python(made / "static", pyodide, content()["example"])
        page = page_html("static", opening, head)
        if write_documents(made / "docs", BACK):
            page = page.replace("</footer>", '<a href="docs/index.html">Documents</a></footer>')
        (made / "index.html").write_text(page, "utf-8")
        for name, text in pages(chosen()["models"][:models], picture):
            (made / "models" / name).write_text(text, "utf-8")
        made.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        made.replace(out)


@click.command(help=__doc__)
@click.option("--out", type=FOLDER, required=True, help="A new folder.")
@click.option("--pyodide", type=FOLDER, help="A folder with the two files that it fetches.")
@click.option("--address", default="", help="Where it will be: links then have a preview picture.")
@click.option("--models", type=int, help="Pages for the first N models alone: a trial.")
def main(out: Path, pyodide: Path | None, address: str, models: int | None) -> None:
    try:
        build(out, pyodide, models, address)
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        sys.exit(error.exit_code)
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    listed = [size for path, size in sizes.items() if path.parent.name == "models"]
    print(f"{len(listed)} pages of models, at most {max(listed):,} bytes")
    print(f"{sum(sizes.values()) / 1e6:.1f} MB  {out}")
    if not (out / "docs").is_dir():
        print("no documents: they need pip install zensical==0.0.50")
    if not address:
        print("no preview picture: it needs an absolute address, --address https://...")


if __name__ == "__main__":
    main()
