"""`advise ui` and its page: who may ask, what is answered, runs, and the page in a real browser."""

import base64
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from advisor.commands.page_answers import pasted_name
from advisor.ground.resources import cache_folder
from advisor.situation.answers import answers_document
from tests.advice.situations import random_answers

BROWSER = shutil.which("chromium")
AXE = "axe-core@4.14.1"
in_browser = pytest.mark.skipif(
    not (BROWSER and find_spec("playwright")), reason="needs Chromium and playwright"
)
EXAMPLE = {"task": "qa", "model": "Qwen/Qwen3-8B", "gpu": {"name": "RTX 4090"}}
TRAINED = {
    "task": "customer_service",
    "depth": "style",
    "data": {"path": "train.jsonl"},
    "gpu": "none",
}
ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(3000)]
MODEL_ROWS = ROWS[:200]


class Ui:
    """A server that was started as a person starts it."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "advisor", "ui", "--no-browser"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()
        self.host, self.token = urlsplit(self.address).netloc, self.address.partition("token=")[2]

    def raw(self, method, path, body=None, **headers):
        """(status, headers, text) of one request."""
        connection = HTTPConnection(self.host, timeout=60)
        connection.request(method, path, body, {"Host": self.host, **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    def text(self, name, body):
        """(exit code, document as text) of a request with the token."""
        sent = body if isinstance(body, str) else json.dumps(body)
        status, headers, text = self.raw(
            "POST", f"/api/{name}", sent.encode(), **{"X-Advise-Token": self.token}
        )
        assert status == 200, text
        return int(headers["X-Advise-Exit"]), text

    def ask(self, name, body):
        """(exit code, document)."""
        code, text = self.text(name, body)
        return code, json.loads(text)


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISE_RUNS", "off")
        server = Ui(folder)
    yield server
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0


# --------------------------------------------------------------------------- who may ask


REFUSED = {  # method, path, headers; {token} is the right one
    "a wrong token": ("POST", "/api/advise", {"X-Advise-Token": "guess"}),
    "no token": ("POST", "/api/advise", {}),
    "a page without its token": ("GET", "/", {}),
    "a page with a wrong token": ("GET", "/?token=%F0%9F%98%80", {}),
    "a foreign host": ("POST", "/api/advise", {"X-Advise-Token": "{token}", "Host": "evil.example"}),
    "a foreign origin": (
        "POST", "/api/advise", {"X-Advise-Token": "{token}", "Origin": "http://evil.example"},
    ),
    "another port's page": (
        "POST", "/api/advise", {"X-Advise-Token": "{token}", "Origin": "http://127.0.0.1:1"},
    ),
    "a request of another site": (
        "POST", "/api/advise", {"X-Advise-Token": "{token}", "Sec-Fetch-Site": "cross-site"},
    ),
    "a static file for a foreign host": ("GET", "/static/page.js", {"Host": "evil.example"}),
    "a report without its token": ("GET", "/report?folder=/etc", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_who_has_no_business_here_is_refused(ui, case):
    """The address holds a token; other hosts and origins are refused, and so is a guess."""
    method, path, headers = REFUSED[case]
    sent = {name: value.format(token=ui.token) for name, value in headers.items()}
    status, told, _ = ui.raw(method, path, b"{}" if method == "POST" else None, **sent)
    assert (status, "X-Advise-Exit" in told) == (403, False)
    assert told["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"prompt": "x", "cell_type": "T cell"}\n{"prompt": "y"}', "pasted.jsonl"),
        ('{"cells": [{"cell_type": "code", "source": []}], "nbformat": 4}', "notebook.ipynb"),
        ("CUDA_VISIBLE_DEVICES=0 python train.py --lr 1", "command.sh"),
        (
            'import torch\ntry:\n  run()\nexcept torch.OutOfMemoryError:\n  print("out")',
            "script.py",
        ),
        ('{"prompt": "At step 5 the loss 2.3 rose"}\n{"prompt": "b"}', "pasted.jsonl"),
        ("ValueError: no such column", "error.txt"),
        ("a=b " * 50_000, "pasted.txt"),  # would take minutes if all of it were looked at
    ],
    ids=["data", "notebook", "command", "script", "data of logs", "error", "long"],
)
def test_a_pasted_text_is_known_by_its_look(text, name):
    """Data that name a cell type are no notebook, a script that names an error is no error, and a
    long text is no reason to wait.
    """
    assert pasted_name(text) == name


@pytest.mark.parametrize(
    "path",
    ["/static/../pyproject.toml", "/static/%2e%2e/%2e%2e/etc/passwd", "/static/", "/etc/passwd",
     "/static//etc/passwd", "/static/page.js/..", "/api/advise", "//etc/passwd",
     "/report?token={token}&folder=/etc", "/report?token={token}&folder=%00"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page_s_files(ui, path):
    """Only the page and the files beside it are served."""
    assert ui.raw("GET", path.format(token=ui.token))[0] == 404


def test_the_page_is_served_with_a_strict_policy(ui):
    """Nothing but its own files, no inline script or style, no frame, no referrer."""
    status, headers, page = ui.raw("GET", f"/?token={ui.token}")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len({*ids})
    assert {*re.findall(r' (?:list|for|href)="#?([\w-]+)"', page)} <= {*ids}
    for file in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert ui.raw("GET", f"/{file}")[0] == 200


# --------------------------------------------------------------------------- documents


def test_documents_are_those_of_the_commands(ui, call, tmp_path, monkeypatch):
    """Byte for byte, for situations drawn by a seed, and so is the exit code."""
    monkeypatch.setenv("ADVISE_RUNS", "off")
    file = tmp_path / "answers.json"
    for seed in range(12):
        answers = answers_document(random_answers(seed))
        if answers["gpu"] == "none":  # what is free in this machine changes meanwhile
            answers["gpu"] = "RTX 4090"
        file.write_text(json.dumps(answers))
        code, out, _ = call("--json", "--answers", str(file))
        assert ui.text("advise", answers) == (code, out.replace(str(file), "<stdin>"))
    (tmp_path / "specs.json").write_text(specs := '[{"model": "Qwen/Qwen3-8B"}, {}]')
    code, out, _ = call("estimate", "--json", "--specs", str(tmp_path / "specs.json"))
    assert ui.text("estimate", specs) == (code, out)


CHECKED = {  # a text -> the name that it is checked under, and what it is recognised as
    '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}': ("pasted.jsonl", "kind"),
    "model_name_or_path: Qwen/Qwen3-8B\nstage: sft\ndataset: x\noutput_dir: y": ("config.yaml", "tool"),
    "trl sft --model_name_or_path Qwen/Qwen3-8B --dataset_name x": ("command.sh", "tool"),
    "export A=1\nB=2 axolotl train \\\n  config.yaml\n": ("command.sh", "error"),
    "import os\nos.system('trl sft --x y')\nSFTTrainer(model='Qwen/Qwen3-8B')": ("script.py", "tool"),
}  # fmt: skip


@pytest.mark.extra("other_tools")
@pytest.mark.parametrize("text", CHECKED)
def test_what_is_pasted_is_recognised(ui, call, tmp_path, monkeypatch, text):
    """The document is that of `advise check`, with the GPU of the form where it matters."""
    name, key = CHECKED[text]
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    gpu = [] if key == "kind" else ["--gpu", "RTX 4090"]
    code, out, _ = call("check", "--json", *gpu, name)
    assert key in json.loads(out)
    assert ui.text("check", {"text": text, "gpu": "RTX 4090"}) == (code, out)
    assert ui.text("check", {"path": str(tmp_path / name), "gpu": "RTX 4090"})[0] == code


@pytest.mark.extra("other_tools")
def test_an_error_text_beside_a_configuration_is_read_with_it(ui, call, tmp_path, monkeypatch):
    """Both pasted, or the configuration by its path: as with two files on the command line."""
    monkeypatch.chdir(tmp_path)
    error = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    )
    beside = {"text": f"{error} capacity of 23.64 GiB of which 1.00 GiB is free."}
    Path("error.txt").write_text(beside["text"])
    Path("config.yaml").write_text(text := next(one for one in CHECKED if "stage: sft" in one))
    code, out, _ = call("check", "--json", "config.yaml", "error.txt")
    assert json.loads(out)["out_of_memory"]
    assert ui.text("check", {"text": text, "beside": beside}) == (code, out)
    named = ui.ask("check", {"path": str(tmp_path / "config.yaml"), "beside": beside})
    assert (named[0], named[1]["out_of_memory"]) == (code, json.loads(out)["out_of_memory"])


@pytest.mark.parametrize(
    ("name", "body"),
    [("advise", "{"), ("advise", {"task": "x"}), ("advise", []), ("plan", "{"), ("plan", {"task": 3}),
     ("plan", {"answers": {}, "into": "x"}), ("plan", {"answers": EXAMPLE, "file": 3}),
     ("check", []), ("check", {"text": 3}), ("check", {}),
     ("check", {"path": "./no/such/file"}), ("estimate", "{}"), ("run", {}), ("run", {"plan": "no.yaml"}),
     ("stop", {"folder": "/tmp"}), ("runs", {"folder": "\0"}), ("plan", {"answers": EXAMPLE, "to": "x"}),
     ("check", {"path": "\0"}), ("run", {"plan": "\0"}), ("check", {"text": "a: 1", "beside": 3}),
     ("check", {"text": "a: 1", "beside": {"text": ""}}), ("check", {"text": "a", "name": "\0"})],
)  # fmt: skip
def test_bad_input_is_an_error_in_the_document(ui, name, body):
    """Exit code 2 and what is wrong, never a broken page."""
    code, document = ui.ask(name, body)
    assert code == 2
    assert document["error"][0]["what"]
    assert "bug in advise" not in document["error"][0]["what"]


def test_many_requests_at_once_are_all_answered(ui):
    """A hundred of them, each with its own answer."""
    with ThreadPoolExecutor(100) as pool:
        found = list(
            pool.map(lambda n: ui.ask("advise", {**EXAMPLE, "data": {"rows": n}}), range(100))
        )
    assert [code for code, _ in found] == [0] * 100
    assert [one["situation"]["facts"]["data_rows"] for _, one in found] == list(range(100))


def test_the_way_on_from_an_answer(ui, call, tmp_path, monkeypatch):
    """The command gives the same answer, the plan is the one that `--plan` writes, a file of
    another trainer is shown, and what stands there is not overwritten.
    """
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("\n".join(map(json.dumps, MODEL_ROWS)))
    answers = {**EXAMPLE, "data": {"path": str(tmp_path / "train.jsonl")}}
    code, way = ui.ask("plan", answers)
    assert (code, way["missing"]) == (0, [])
    code, written = ui.ask("plan", {"answers": answers, "path": str(tmp_path / "a.yaml")})
    assert (code, written["plan"]["model"]) == (0, "Qwen/Qwen3-8B")
    assert call(*shlex.split(way["command"])[1:], "--plan", "b.yaml")[0] == 0
    written, same = (
        Path(name).read_text().partition("origin:")[0] for name in ("a.yaml", "b.yaml")
    )
    assert written == same.replace("run b.yaml", "run a.yaml")
    other = {**answers, "model": "Qwen/Qwen3-1.7B"}
    code, again = ui.ask("plan", {"answers": other, "path": str(tmp_path / "a.yaml")})
    assert code == 2
    assert "exists" in again["error"][0]["what"]
    for path in ("no/such/folder/a.yaml", "a\0.yaml", ""):
        code, refused = ui.ask("plan", {"answers": answers, "path": path})
        assert code == 2
        assert refused["error"][0]["what"]
    code, files = ui.ask("plan", {"answers": answers, "to": "trl"})
    assert code == 0
    assert "model_name_or_path: Qwen/Qwen3-8B" in files["files"]["trl.yaml"]
    counted = {**EXAMPLE, "data": {"kind": "paired", "rows": 400}}
    code, files = ui.ask("plan", {"answers": counted, "to": "llamafactory"})
    listed = json.loads(files["files"]["dataset_info.json"])
    assert (code, listed["rows"]["file_name"]) == (0, "data/train.jsonl")


def test_a_question_that_cannot_change_the_answer_folds(ui):
    """What no answer can change is named apart from what still matters."""
    answers = {"task": "classification", "data": {"kind": "paired", "rows": 5000}, "budget": "low",
               "model": "Qwen/Qwen3-0.6B", "gpu": "RTX 4090", "depth": "task"}  # fmt: skip
    code, way = ui.ask("plan", answers)
    assert code == 0
    assert way["folded"] == ["verifiable_rewards_available"]
    assert "latency_critical" in way["matter"]
    assert not {*way["folded"]} & {*way["matter"]}


# --------------------------------------------------------------------------- runs


@pytest.mark.smoke
def test_a_run_is_started_stopped_resumed_and_finished(tiny_model, tmp_path):
    """By requests alone; it is in its folder, and goes on while nobody looks."""
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, MODEL_ROWS)))
    ui = Ui(tmp_path)
    answers = TRAINED | {"model": str(tiny_model)}
    assert ui.ask("plan", {"answers": answers, "path": "plan.yaml"})[0] == 0
    code, started = ui.ask("run", {"plan": "plan.yaml"})
    assert (code, started["status"]) == (0, "running"), started
    folder = {"folder": str(tmp_path / started["folder"])}

    def wait_for(is_so):
        deadline = time.monotonic() + 240
        while not is_so(found := ui.ask("runs", folder)[1]):
            assert time.monotonic() < deadline, found
            time.sleep(0.3)
        return found

    wait_for(lambda one: (one["progress"] or {}).get("step"))
    assert ui.ask("stop", folder)[0] == 0
    stopped = wait_for(lambda one: one["status"] != "running")
    assert stopped["status"] == "stopped"
    assert stopped["losses"]["sft"]
    assert ui.ask("run", {"plan": folder["folder"]})[0] == 0
    done = wait_for(lambda one: one["status"] != "running")
    assert (done["status"], done["report"]) == ("done", True), done
    assert [one["status"] for one in ui.ask("runs", {})[1]["runs"]] == ["done"]
    status, headers, page = ui.raw("GET", f"/report?token={ui.token}&folder={folder['folder']}")
    assert status == 200
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "<h1" in page
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=30) == 0


# --------------------------------------------------------------------------- in a browser

ANSWERED = '#sizes li:last-child .verdict:not(:text-is("…"))'  # the last that an answer fills
PATIENCE_MS = 120_000  # others use this machine


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, ui):
    """The page with its first answer; it asks nobody else, and nothing in it fails."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page, asked, failed = context.new_page(), [], []
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: asked.append(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda line: failed.append(line.text) if line.type == "error" else None)
    page.goto(ui.address)
    page.wait_for_selector(ANSWERED)
    yield page
    context.close()
    assert (set(asked), failed) == ({ui.host}, [])


def linked(ui, text):
    """The address of a link that carries this text."""
    return f"{ui.address}#a={base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}"


def tab_to(page, selector, most=80):
    """Press Tab until an element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
            return
    raise AssertionError(f"{selector} is not reached by Tab")


@in_browser
def test_the_page_opens_with_an_answer_and_follows_a_change(page):
    """A choice changes the sentence, the numbers and what other GPUs say; the last change wins."""
    assert "Teach Qwen/Qwen3-8B" in page.inner_text("#headline")
    assert page.inner_text("#verdict") == "Fits"
    page.fill("#gpu", "T4")
    page.fill("#data_rows", "1")
    page.fill("#data_rows", "3000")
    page.wait_for_selector("#headline:has-text('3,000'):has-text('qlora')")
    page.click("#cards a:has-text('H100')")
    page.wait_for_selector("#headline:has-text('sft+lora')")
    assert page.input_value("#gpu") == "H100 SXM5 80GB"
    page.click("#reasons button:has-text('150')")
    page.wait_for_selector("#headline:has-text('prompting')")
    assert page.input_value("#data_rows") == "150"
    assert page.is_hidden("#cards")


@in_browser
def test_the_keyboard_alone_reaches_the_plan(page):
    """Task, model and GPU by keys; then the plan can be read and copied."""
    tab_to(page, "[name=task]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#headline:has-text('Qwen3-8B')")
    tab_to(page, "#model")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("Qwen/Qwen3-1.7B")
    page.keyboard.press("Enter")
    page.wait_for_selector("#headline:has-text('Qwen3-1.7B')")
    page.wait_for_selector("#answer:focus")
    tab_to(page, "#plan")
    assert "model: Qwen/Qwen3-1.7B" in page.inner_text("#plan")


@in_browser
def test_a_link_carries_the_answers(ui, page):
    """What the page says of a link is what it said when the link was made."""
    for seed in range(4):
        answers = answers_document(random_answers(seed))
        page.goto("about:blank")
        page.goto(linked(ui, json.dumps(answers)))
        page.wait_for_selector("#reasons h3")
        _code, way = ui.ask("plan", answers)
        assert page.inner_text("#headline") == way["headline"]
        link, said = page.text_content("#link"), page.text_content("#command")
        assert sorted(shlex.split(said)) == sorted(shlex.split(way["command"]))
        page.goto("about:blank")
        page.goto(link)
        page.wait_for_selector("#reasons h3")
        assert (page.text_content("#link"), page.text_content("#command")) == (link, said)


@in_browser
def test_every_kind_of_answer_goes_through_the_form(ui, page, tmp_path):
    """Choices, numbers with their parts, limits, signals said and denied, a file for each team; what
    the form has no question for is kept, shown, and forgotten by a click.
    """
    for name in ("legal", "sales"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, MODEL_ROWS)))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("legal", "sales")}
    answers = {"task": "multi_department", "tasks": files, "budget": {"usd": 20, "hours": 3},
               "gpu": {"name": "RTX 4090", "count": 2}, "depth": "style", "model": "Qwen/Qwen3-1.7B",
               "signals": {"prompting_tried": True, "latency_critical": False}, "model_params_b": 2,
               "data": {"mapping": {"question": "prompt", "answer": "completion"}}}  # fmt: skip
    page.goto("about:blank")
    page.goto(linked(ui, json.dumps(answers)))
    page.wait_for_selector("#reasons h3")
    assert page.inner_text("#headline") == ui.ask("plan", answers)[1]["headline"]
    assert page.input_value("#model_params_b") == "2"
    assert 'data.mapping is {"question":"prompt","answer":"completion"}.' in page.inner_text(
        "#kept"
    )
    page.click("#kept button")
    page.wait_for_selector("#kept", state="hidden")
    page.wait_for_selector("#answer:not([aria-busy])")
    del answers["data"]
    said = page.evaluate("document.querySelector('#command').textContent")
    assert sorted(shlex.split(said)) == sorted(shlex.split(ui.ask("plan", answers)[1]["command"]))


@in_browser
def test_where_nothing_fits_the_page_says_what_it_would_need(ui, page):
    """Its memory against the GPU, no plan and no line that would fail, and what would fit."""
    page.goto("about:blank")
    page.goto(
        linked(ui, '{"task": "qa", "model": "meta-llama/Llama-3.1-70B-Instruct", "gpu": "T4"}')
    )
    page.wait_for_selector("#reasons h3:has-text('What would fit')")
    assert page.inner_text("#verdict") == "Does not fit"
    assert "GiB" in page.get_attribute(".bar.no", "aria-label")
    assert page.inner_text("#plan-hint") == "Nothing fits, so there is no plan"
    hidden = [page.is_hidden(one) for one in ("#bundle", "#plan", "#plan + .row", "#cards")]
    assert hidden == [True, True, True, False]


WRONG = ["{", "[]", "3", "null", "", "%%%", "\0", '{"task": "x"}', '{"tusk": "qa"}', '{"task": ["qa"]}',
         '{"task": "qa", "gpu": 3}', '{"task": "qa", "data": {"rows": -1}}', '{"task": "qa", "__proto__": 1}',
         '{"task": "qa", "signals": {"x": 4}}', '{"task": "qa", "budget": "cheap"}', '{"data": []}',
         '{"task": "qa", "data": {"rows": "many"}}', '{"task": "qa", "n_tasks": 0.5}', '{"gpu": {"nam": "T4"}}',
         '{"task": "qa", "budget": {"usd": -3}}']  # fmt: skip


@in_browser
def test_a_wrong_link_gets_the_command_s_own_message(ui, page):
    """Also one that is no base64url; the field at fault has the focus where there is one."""
    for text in WRONG:
        page.goto("about:blank")
        page.goto(f"{ui.address}#a=%%%" if text == "%%%" else linked(ui, text))
        page.wait_for_selector("#faults:not([hidden])")
        code, document = ui.ask("advise", text)
        assert code == 2
        assert document["error"][0]["what"].replace("`", "") in page.inner_text("#faults")
        assert "<stdin>" not in page.inner_text("#faults")
        if '"rows": -1' in text:
            page.wait_for_selector("#data_rows:invalid:focus")


HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


@in_browser
def test_what_a_file_says_is_text(page):
    """Markup in a pasted file, in a link, in a name of a model is shown, never run."""
    page.fill("#box", f"model_name_or_path: '{HOSTILE}'\nstage: sft\noutput_dir: x\n{HOSTILE}: 1")
    page.click("#check")
    page.wait_for_selector("#found li, #found pre")
    page.fill("#model", HOSTILE)
    page.wait_for_selector("#answer:not([aria-busy])")
    page.wait_for_timeout(600)
    assert page.evaluate("window.hit") is None
    assert page.locator("#found img, #answer img, #found script").count() == 0


@in_browser
def test_a_pasted_configuration_is_answered_with_its_diff(page):
    """Recognised, judged for the GPU of the form, with the changes to copy."""
    page.fill("#box", "model_name_or_path: Qwen/Qwen3-8B\nstage: sft\ndataset: x\noutput_dir: y\n")
    page.click("#check")
    page.wait_for_selector("#found ins")
    assert "Does not fit" in page.inner_text("#found")
    assert page.evaluate("document.activeElement.id") == "found"
    page.fill("#box", "\n".join(map(json.dumps, MODEL_ROWS)))
    page.click("#check")
    page.click("#found button:has-text('Answer for these data')")
    page.wait_for_selector("#headline:has-text('200')")
    page.fill("#box", '{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    page.click("#check")
    page.wait_for_selector("#found p:has-text('train: nothing yet')")
    said = page.inner_text("#found")
    assert (said.count("invalid JSON"), "1 row: " in said, "for these" in said) == (1, True, False)


def file(name, count):
    """Data as a browser hands them on; no rows: data that nobody can learn from."""
    rows = ROWS[:count] or [{"a": 1}]
    return {"name": name, "mimeType": "", "buffer": "\n".join(map(json.dumps, rows)).encode()}


@in_browser
def test_a_checked_file_is_used_by_name_until_it_is_taken_away(page):
    """Of several the first data; each is shown. Without it the form holds what it held before."""
    page.set_input_files("#file", [file("mine.jsonl", 700), file("more.jsonl", 90)])
    page.wait_for_selector("#headline:has-text('700')")
    assert page.inner_text("#used").startswith("The answer is for mine.jsonl with 700 rows.")
    assert page.locator("#found h3").all_inner_texts() == ["mine.jsonl", "more.jsonl"]
    page.wait_for_selector("#answer:not([aria-busy])")
    for place in ("#command", "#bundle", "#steps"):
        assert "--data mine.jsonl" in page.text_content(place)
        assert "--data-" not in page.text_content(place)
    assert "path: mine.jsonl" in page.text_content("#plan")
    assert page.is_enabled("#write")
    for empty in ([file("bad.jsonl", 0)], [], None):  # replaced, taken out, given back
        if empty is None:
            page.click("#used button")
        else:
            page.set_input_files("#file", empty)
        page.wait_for_selector("#headline:has-text('2,000')")
        assert (page.input_value("#data_rows"), page.is_hidden("#used")) == ("2000", True)
        page.set_input_files("#file", [file("mine.jsonl", 700)])
        page.wait_for_selector("#headline:has-text('700')")
    page.click("#again")
    page.wait_for_selector("#headline:has-text('Choose')")
    kept = [page.input_value(one) for one in ("#file", "#box", "#model", "#data_rows")]
    hidden = [page.is_hidden(one) for one in ("#found", "#used", "#plan", "#cards", "#compare td")]
    assert (kept, hidden, "#" in page.url) == ([""] * 4, [True] * 5, False)


@in_browser
def test_nothing_shines_through_the_head_of_the_answer(page):
    """Also not what is dimmed while the next answer is made."""
    page.evaluate("document.querySelector('#answer').setAttribute('aria-busy', 'true')")
    page.evaluate("document.querySelector('#reasons').scrollIntoView()")
    seen = "[...Array(30).keys()].every((at) => document.elementFromPoint(900, 10 * at).closest('.glance'))"
    assert page.evaluate(seen)
    page.set_viewport_size({"width": 390, "height": 844})  # the bar below waits, too
    assert page.evaluate("getComputedStyle(document.querySelector('#peek > *')).opacity") == "0.55"


@in_browser
def test_the_page_speaks_of_no_flags(page):
    """What only a command line has is left out of warnings and of what a file is refused for; keys
    are questions, and no signs of Markdown are shown, or four dots where a part ends in three.
    """
    page.set_input_files("#file", [file("bad.jsonl", 0)])
    page.wait_for_selector("#found:has-text('no known columns')")
    shown = page.inner_text("#found") + page.inner_text("#reasons")
    page.fill("#gpu", "RTX 9999")
    page.wait_for_selector("#reasons:has-text('unknown GPU')")
    shown += page.inner_text("#reasons")
    assert "say its memory with “How much memory the GPU has”" in shown
    page.fill("#box", "python train.py --learning_rate 2e-4 --use_peft")
    page.click("#check")
    page.wait_for_selector("#found:has-text('starts a tool')")
    shown += page.inner_text("#found")
    assert not re.search(r"--[a-z]|\badvise |`|\.{4}", shown), shown


@in_browser
def test_a_fault_of_a_file_names_it(page, tmp_path):
    """A plan that is not there, data, a file that would be overwritten; without its flag."""
    page.click("#run")
    page.wait_for_selector("#run-said:has-text('plan.yaml: no such file')")
    page.fill("#check-path", "none.jsonl")
    page.click("#check")
    page.wait_for_selector("#found:has-text('none.jsonl: no such file')")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, MODEL_ROWS)))
    (tmp_path / "a.yaml").write_text("mine")
    page.fill("#check-path", str(tmp_path / "train.jsonl"))
    page.click("#check")
    page.fill("#run-path", str(tmp_path / "a.yaml"))
    page.click("#write:not([disabled])")
    page.wait_for_selector("#run-said li:has-text('a.yaml exists')")
    assert "--plan" not in page.inner_text("#run-said")
    page.fill("#run-path", "")
    page.click("#write")
    page.wait_for_selector("#run-path:invalid:focus")


SEEN = """() => {
  const one = document.activeElement, box = one.getBoundingClientRect();
  const seen = (at) => one.contains(document.elementFromPoint(box.left + box.width / 2, at));
  return [one.outerHTML, one === document.body || (seen(box.top + 4) && seen(box.bottom - 4)),
    getComputedStyle(one).outlineStyle];
}"""


@in_browser
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)])
def test_what_has_the_focus_is_seen(page, size):
    """By Tab and back: with its ring, in full, not behind the head of the answer or the bar below."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    for key in ("Tab", "Shift+Tab"):
        for _ in range(60):
            page.keyboard.press(key)
            page.wait_for_timeout(20)
            html, is_seen, ring = page.evaluate(SEEN)
            assert is_seen, (key, html)
            assert ring == "solid" or html.startswith("<body"), html


@in_browser
def test_a_command_is_copied_from_its_box(page):
    """Each of the way on has a button, which says for a while what it has done; where a page may
    not write to the clipboard, the command is selected.
    """
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#steps pre:has-text('advise run') + .row button")
    page.wait_for_selector("#steps button:has-text('Copied')")
    said = page.text_content("#steps pre:has-text('advise run')")
    assert page.evaluate("navigator.clipboard.readText()") == said
    page.wait_for_selector("#steps button:has-text('Copied')", state="detached")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click("#steps pre:has-text('advise check') + .row button")
    page.wait_for_selector("#steps button:has-text('Selected')")
    assert page.evaluate("getSelection().toString()").startswith("advise check")


@pytest.mark.smoke
@in_browser
def test_a_run_goes_through_by_clicks(chromium, tiny_model, tmp_path):
    """Written, started, stopped, the page closed, found again, resumed, finished, its report read."""
    # The page looks once a second: the steps have to last longer than that on any machine.
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    ui, context = Ui(tmp_path), chromium.new_context()
    page = context.new_page()
    page.goto(linked(ui, json.dumps(TRAINED | {"model": str(tiny_model)})))
    page.click("#write:not([disabled])")
    page.click("#run:not([disabled])")
    page.wait_for_selector("#runs progress", timeout=240_000)
    page.click("#runs button:has-text('Stop')")
    page.wait_for_selector("#runs b:has-text('stopped')", timeout=120_000)
    assert page.locator("#runs svg").bounding_box()["height"] > 50
    page.close()
    page = context.new_page()
    page.goto(ui.address)
    page.click("#runs button:has-text('Resume')")
    page.wait_for_selector("#runs b:has-text('done')", timeout=240_000)
    with context.expect_page() as opened:
        page.click("#runs a:has-text('Report')")
    opened.value.wait_for_selector("h1:has-text('train.jsonl')")
    context.close()
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=30) == 0


@cache
def axe():
    """The source of axe-core, from its npm package; skips if it cannot be had."""
    folder = cache_folder() / "tests" / AXE
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        npm = shutil.which("npm") or pytest.skip("needs npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--ignore-scripts", "--prefix", str(folder), AXE]
        if subprocess.run(command, check=False, capture_output=True, timeout=120).returncode:
            pytest.skip(f"{AXE} cannot be had")
    return script.read_text("utf-8")


WITHIN = "(one) => one.scrollHeight <= one.clientHeight"
PARTS = "(one) => one.getClientRects().length"  # on so many lines


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["answer", "faults", "all open"])
def test_axe_finds_nothing(ui, chromium, scheme, state):
    """With an answer, with faults, with everything unfolded, light and dark, on a small screen."""
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    is_wrong = state == "faults"
    page.goto(
        linked(ui, '{"task": "qa", "gpu": "RTX 9999", "data": {"rows": -1}}')
        if is_wrong
        else ui.address
    )
    page.wait_for_selector("input:invalid" if is_wrong else ANSWERED)
    if state == "all open":
        page.click("#keep")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(axe())
    found = page.evaluate("axe.run().then((result) => result.violations)")
    told = [(one["id"], [node["target"] for node in one["nodes"]]) for one in found]
    width = page.evaluate("document.documentElement.scrollWidth")
    cards = page.evaluate(f"[...document.querySelectorAll('.card')].every({WITHIN})")
    options = page.evaluate(f"[...document.querySelectorAll('pre code')].map({PARTS})")
    context.close()
    assert (told, width, cards) == ([], 390, True)
    assert state != "all open" or set(options) == {1}


@in_browser
def test_nothing_moves_while_the_page_loads(ui, chromium):
    """The layout shifts by less than what Google calls good (0.1)."""
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver((list) => { for (const one of list.getEntries())"
        " if (!one.hadRecentInput) window.shift += one.value; })"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(ui.address)
    page.wait_for_selector(ANSWERED)
    page.wait_for_timeout(300)
    shift = page.evaluate("window.shift")
    page.close()
    assert shift < 0.1
