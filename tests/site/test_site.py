"""The page as a folder of files: built, asked in Node and in a browser, compared with the command.

`smoke`: they build it, which fetches Pyodide by npm the first time.
"""

import ast
import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import yaml

from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import parse_yaml
from tests.site.asking import BROKEN, ROOT, as_text, by_command, by_page, differences, situations
from tests.test_ui import PATIENCE_MS, Ui, tab_to
from tools.site.core import PACKAGES

BROWSER = shutil.which("chromium")
ROWS = 50_000
ADDRESS = "https://example.org/advise/"  # where the folder could be
QA = {"task": "qa", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B"}
PASTED = {
    "rows.jsonl": '{"question": "What is é?", "answer": "A letter, seen twice."}\n' * 60,
    "phones.jsonl": '{"prompt": "Call me", "completion": "My number is +49 30 901820."}\n' * 60,
    "bad.jsonl": '{"question": "a", "answer": "b"}\n{"question": \n',
    "trl.yaml": "model_name_or_path: Qwen/Qwen3-8B\nuse_peft: true\nmax_length: 4096\nlerning: 1\n",
    "axolotl.yaml": "base_model: NousResearch/Llama-3.1-8B\nadapter: lora\nsequence_len: 8192\n",
    "broken.yaml": "base_model: a: b\nadapter: lora\n",
}


def build(*words, **env):
    """(exit code, standard output, standard error) of the builder."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=500, env=env or None,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page, built as a person builds it, below a folder of its own."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    out = tmp_path_factory.mktemp("hosted") / "some" / "place"
    code, said, error = build("--out", out, "--models", 2, "--address", ADDRESS)
    if code == 2 and "cannot be fetched" in error:
        pytest.skip(error)
    assert code == 0, error
    assert f"MB  {out}" in said
    return out


# --------------------------------------------------------------------------- without building


def test_what_stands_in_the_way_is_said(tmp_path):
    """No npm, another folder than Pyodide's, a folder that is in use: exit code 2 and a way on."""
    nothing = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    code, _, error = build("--out", tmp_path / "new", **nothing)
    assert code == 2
    assert "npm is not installed" in error
    assert "--pyodide" in error
    (tmp_path / "empty").mkdir()
    code, _, error = build("--out", tmp_path / "new", "--pyodide", tmp_path / "empty")
    assert code == 2
    assert "there is no pyodide-" in error
    assert "npm pack" in error
    code, _, error = build("--out", tmp_path / "new", "--address", "example.org")
    assert code == 2
    assert "--address" in error
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    code, _, error = build("--out", tmp_path / "used")
    assert (code, (tmp_path / "used" / "file").read_text()) == (2, "mine")
    assert not (tmp_path / "new").exists()


NOT_ON_THE_PAGE = {  # what is imported for something that no request of the page reaches
    "a terminal": {"rich", "questionary", "prompt_toolkit"},
    "training, and a model's folder": {"torch", "transformers", "peft", "tokenizers", "jinja2", "markupsafe"},
    "the network": {"huggingface_hub"},
    "this machine": {"psutil", "pynvml"},
    "a file that is no text in UTF-8": {"pyarrow", "openpyxl", "charset_normalizer"},
}  # fmt: skip


def test_the_page_has_every_package_that_it_imports():
    """A package that the advisor begins to import is in the build, or has its reason not to be."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "advisor").rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {name.partition(".")[0] for name in named} - sys.stdlib_module_names
    elsewhere = set().union(*NOT_ON_THE_PAGE.values())
    assert imported - {"advisor"} == {"msgspec", *PACKAGES} | elsewhere


def test_every_rule_file_reads_the_same_without_libyaml(monkeypatch):
    """The page has PyYAML's own parser, which takes an unquoted `?` in a list for a key."""
    files = sorted(rules_dir().rglob("*.yaml"))
    read = [parse_yaml(path.read_text("utf-8"), name=path.name).data for path in files]
    assert len(read) > 150
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert [parse_yaml(path.read_text("utf-8"), name=path.name).data for path in files] == read


def test_the_page_of_a_model_says_what_the_advisor_says():
    """Fifteen cards, each with its link: the marked method is the one that the command recommends."""
    from tools.site.models import page

    text = page("Qwen/Qwen3-0.6B")
    assert len(text.encode()) < 30_000
    assert "<title>Fine-tune Qwen/Qwen3-0.6B: GPU memory, time and price</title>" in text
    assert re.search(r'<meta name="description" content="[^"]{60,}"', text)
    assert "<script" not in text
    rows = re.findall(r'<th scope="row">.*?</tr>', text, re.DOTALL)
    columns = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', text)[1:]
    assert len(rows) == 15
    for row in rows[::7]:
        link = re.search(r"#a=([\w-]+)", row)[1]
        answers = json.loads(base64.urlsafe_b64decode(link + "=" * (-len(link) % 4)))
        found = json.loads(by_command("--json", "--answers", "-", given=answers)[0])
        best = found["recommendation"]
        cells = re.findall(r"<td.*?</td>", row, re.DOTALL)
        marked = [name for name, cell in zip(columns, cells, strict=True) if "recommended" in cell]
        assert len(marked) == 1
        assert best["composition"].partition("+")[2] in marked[0].lower()
        assert f"{best['estimate']['need_gib']:.1f} GiB" in cells[columns.index(marked[0])]


# --------------------------------------------------------------------------- in Node


@pytest.mark.smoke
def test_the_page_answers_as_the_command_does(site):
    """Drawn situations and broken ones: the same bytes and exit codes."""
    wrong, words = differences(site, [*situations(1, 12), *BROKEN])
    assert wrong == [], words


@pytest.mark.smoke
def test_what_is_pasted_is_checked_as_the_command_does(site, tmp_path):
    """Data and configurations, sound and broken, and a list of runs to estimate."""
    asked = [
        ("check", {"name": name, "text": text} | ({"gpu": "T4"} if name.endswith("yaml") else {}))
        for name, text in PASTED.items()
    ]
    specs = [{"model": "Qwen/Qwen3-8B", "gpu": "T4"}, {"model": "no/such"}]
    _, *found = by_page(site, [*asked, ("estimate", specs), ("plan", QA)])
    for (_, body), page in zip(asked, found, strict=False):
        (tmp_path / body["name"]).write_text(body["text"], "utf-8")
        words = ("check", "--json", *(["--gpu", body["gpu"]] if "gpu" in body else []))
        said = by_command(*words, "--", body["name"], folder=tmp_path)
        assert (page["text"], page["exit"]) == said
    listed = by_command("estimate", "--json", "--specs", "-", given=specs)
    assert (found[-2]["text"], found[-2]["exit"]) == listed
    assert "sft+lora" in json.loads(found[-1]["text"])["headline"]


# --------------------------------------------------------------------------- in a browser


class Quiet(SimpleHTTPRequestHandler):
    """Files as any host gives them: no header of its own."""

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def page():
    """A browser's page that remembers what it asks for and what goes wrong in it."""
    if not (BROWSER and find_spec("playwright")):
        pytest.skip("needs Chromium and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 320, "height": 800})
        page.set_default_timeout(PATIENCE_MS)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        yield page
        browser.close()


@pytest.fixture
def hosted(site, page):
    """The address of the page below a sub-path, and a browser's page."""
    handler = partial(Quiet, directory=str(site.parent.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/some/place/", page
    server.shutdown()


@pytest.fixture(params=["served", "static"])
def home(request, tmp_path):
    """The address of the page in `advise ui`, and in a folder of files."""
    if request.param == "static":
        yield f"{request.getfixturevalue('hosted')[0]}index.html"
        return
    ui = Ui(tmp_path)
    yield ui.address
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=30) == 0


SCRIPT = "from trl import SFTTrainer\nSFTTrainer('Qwen/Qwen3-8B', train_dataset=rows).train()\n"
ERROR = (
    "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate"
    " 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.20 GiB is free."
)


@pytest.mark.smoke
def test_a_person_goes_through_both_homes(home, page):
    """Keys alone lead to plan.yaml; a card is clicked; a link says the same again, a wrong one what
    the command says; an error explains the script before it; nothing is asked elsewhere.
    """
    page.goto(home)
    page.wait_for_selector("#reasons h3")
    tab_to(page, "[name=task]")
    page.keyboard.press("ArrowRight")
    tab_to(page, "#model")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("Qwen/Qwen3-1.7B")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer:focus")
    tab_to(page, "#plan")
    assert "model: Qwen/Qwen3-1.7B" in page.inner_text("#plan")
    page.click("#cards a:has-text('H100')")
    page.wait_for_selector("#cards [aria-current]:has-text('H100')")
    told = ("#headline", "#command", "#link")
    link, said = page.text_content("#link"), [page.text_content(one) for one in told]
    for address, found in (
        (link, "#reasons h3"),
        (home + "#a=eyJ0YXNrIjoieCJ9", "#faults:has-text('task')"),
    ):
        page.goto("about:blank")
        page.goto(address)
        page.wait_for_selector(found)
        if address == link:
            assert [page.text_content(one) for one in told] == said
    for text in (SCRIPT, ERROR):
        page.fill("#box", text)
        page.click("#check")
        page.wait_for_selector("#found:focus")
    page.wait_for_selector("#found:has-text('script.py and error.txt'):has-text('1.2 GiB of 23.6')")
    page.fill("#box", PASTED["trl.yaml"])  # another run, which that error is not of
    page.click("#check")
    page.wait_for_selector("#found:has-text('config.yaml'):not(:has-text('error.txt'))")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert {urlsplit(one).netloc for one in page.asked} <= {urlsplit(home).netloc, ""}
    assert page.said == []


ANSWER = """async (body) => {
  const start = performance.now();
  const {text, exit} = await window.advise("advise", body);
  return {text, exit, ms: performance.now() - start, since: performance.now()};
}"""
CHECK = """async (count) => {
  const row = (k) => JSON.stringify({question: `What does item ${k} cost?`,
    answer: `Item ${k} costs ${k * 7 % 991} euros and ships within ${k % 9} days. `.repeat(9)});
  const text = Array.from({length: count}, (_, k) => row(k)).join("\\n");
  let last = performance.now(), pause = 0, ticks = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    pause = Math.max(pause, now - last); last = now; ticks += 1;
  }, 20);
  const {document} = await window.advise("check", {name: "rows.jsonl", text});
  clearInterval(timer);
  return {rows: document.rows, pause, ticks};
}"""


@pytest.mark.smoke
def test_a_browser_needs_nothing_but_the_folder(hosted):
    """The same bytes in Chromium, soon; every request goes to the folder and none after the start;
    50,000 rows are checked while the page goes on.
    """
    address, page = hosted
    page.goto(f"{address}index.html")
    first = page.evaluate(ANSWER, QA)
    start = time.perf_counter()
    assert (first["text"], first["exit"]) == by_command("--json", "--answers", "-", given=QA)
    command_ms = 1000 * (time.perf_counter() - start)  # what else the machine does counts for both
    assert first["since"] < max(5_000, 10 * command_ms)
    loaded = len(page.asked)
    times = [
        page.evaluate(ANSWER, {**QA, "data": {"kind": "paired", "rows": rows}})["ms"]
        for rows in (500, 5_000, 50_000)
    ]
    assert sorted(times)[1] < max(600, 4 * command_ms)
    found = page.evaluate(CHECK, ROWS)
    assert found["rows"] == ROWS
    assert found["pause"] < 1_000
    assert found["ticks"] > 10
    assert len(page.asked) == loaded
    assert [url for url in page.asked if not url.startswith(address)] == []
    assert page.said == []


@pytest.mark.slow
def test_200_situations_get_the_same_bytes_in_a_browser(hosted):
    """What the smoke test shows of twelve in Node."""
    address, page = hosted
    page.goto(f"{address}index.html")
    for answers in [*situations(2, 200), *BROKEN]:
        found = page.evaluate(ANSWER, as_text(answers))
        said = by_command("--json", "--answers", "-", given=answers)
        assert (found["text"], found["exit"]) == said, answers


@pytest.mark.smoke
@pytest.mark.parametrize("file", ["core.tar.gz", "worker.mjs", "pyodide.asm.wasm"])
def test_a_page_that_cannot_load_says_so(hosted, file):
    """A file that the host does not have is named to the person, whenever they ask."""
    address, page = hosted
    page.route(f"**/{file}", lambda route: route.fulfill(status=404))
    page.goto(f"{address}index.html")
    page.wait_for_selector("#reasons h3")  # of the example, which needs no Python
    page.wait_for_timeout(1000)
    page.check("input[name=task][value=code]", force=True)
    page.wait_for_function(f"document.getElementById('faults').innerText.includes('{file}')")


@pytest.mark.smoke
def test_pages_of_models_need_no_script(site):
    """They lead to each other, and to files that are there."""
    for path in (site / "models").iterdir():
        text = path.read_text("utf-8")
        assert len(text.encode()) < 30_000
        assert f'property="og:image" content="{ADDRESS}static/preview.png"' in text
        for target in re.findall(r'(?:href|src)="([^"#:]+)', text):
            assert (path.parent / target).resolve().is_file(), target
    built = {path.name for path in Path(site).iterdir()} - {"docs"}  # those need Zensical
    assert built == {"index.html", "static", "models"}
