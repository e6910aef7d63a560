"""Results on the hub: one key uploads once, after the checks, and a failed upload loses nothing."""

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from advisor.commands.training import show_run
from advisor.ground.errors import InputError, MachineNotReady
from advisor.launch import stages
from advisor.plan.read import read_plan
from advisor.record.files import read_record
from advisor.render.report import write_report
from tests.launch.conftest import FULL, PLAN, run

pytest.importorskip("huggingface_hub", reason="needs the extra train")
RESULT = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"}


@pytest.fixture
def hub(shop, monkeypatch):
    """A hub on this machine that mia is logged in to; the plan pushes to her repository."""
    from huggingface_hub import _commit_api, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The hub's other way of storing is a service of its own, in compiled code.
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    (shop / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (shop / "plan.yaml").write_text(f"{PLAN}push_to: mia/shop\n")
    with Hub() as found:
        environment = {"HF_ENDPOINT": found.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        for name, value in {**environment, "STAND_IN_CHECKS": "[true, true]"}.items():
            monkeypatch.setenv(name, value)
        yield found
        found.shutdown()


def done(push_to=None, **options):
    """A run to its end, with its report; of a plan that pushes elsewhere."""
    if push_to:
        Path("plan.yaml").write_text(f"{PLAN}push_to: {push_to}\n")
    return run(on_end=write_report, **options)


def test_a_result_is_uploaded_once_with_its_card_and_nothing_else(shop, hub, capsys):
    """Its files and a card go into a new private repository, once; run.json has the commit."""
    found = done()
    assert found.errors == ()
    said = capsys.readouterr().err
    assert "the result goes to mia/shop, a new private repository" in said
    assert "sft is on the hub:" in said
    assert hub.repositories["mia/shop"]["private"] is True
    stage, uploaded = found.folder / "stages" / "sft", hub.files("mia/shop")
    assert uploaded == {name: (stage / name).read_bytes() for name in RESULT}
    card = uploaded["README.md"].decode()
    assert "Licence of the base: mit." in card
    digests = read_record(found.folder).input_digests
    (digest,) = (held for name, held in digests.items() if name.startswith("data"))
    assert f"its digest: {digest}" in card
    rows = map(json.loads, (shop / "train.jsonl").read_text().splitlines())
    assert [row for row in rows if row["messages"][1]["content"] in card] == []
    record = (found.folder / "run.json").read_text()
    pushed = json.loads(record)["extras"]["hub"]["sft"]
    assert (pushed["repository"], len(pushed["commit"])) == ("mia/shop", 40)
    assert TOKEN not in record + said
    asked = len(hub.asked)
    assert done().already_done
    assert len(hub.asked) == asked, "a finished run asks the hub nothing"


def test_a_failed_upload_loses_nothing_and_the_next_call_only_uploads(
    shop, hub, capsys, monkeypatch
):
    """The run is done, exit code 4, and the error names the command; it trains nothing again."""
    hub.broken = {"/commit/"}
    found = done()
    assert (found.record.status, found.exit_code, show_run(found)) == ("done", 4, 4)
    said = capsys.readouterr().err
    assert "error: push_to: could not upload sft to mia/shop" in said
    assert f"to try again, without training: advise run runs/{found.folder.name}" in said
    assert show_run(found, as_json=True) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "done"
    assert "could not upload" in document["error"][0]["what"]
    hub.broken = set()
    monkeypatch.setattr(stages.StageRunner, "train", None)  # nothing is trained
    again = run(found.folder)
    assert (again.exit_code, len(hub.repositories["mia/shop"]["commits"])) == (0, 1)
    assert "mia/shop" in again.record.extras["hub"]["sft"]["url"]


def test_a_key_that_is_added_later_uploads_the_finished_result(shop, hub):
    """The run stays the same, and the plan in its folder has the key from then on."""
    (shop / "plan.yaml").write_text(PLAN)
    first = done()
    assert hub.asked == []
    found = done("mia/other")
    assert (found.folder, len(hub.repositories["mia/other"]["commits"])) == (first.folder, 1)
    assert read_plan(found.folder / "plan.yaml").extra_key("hub", "push_to") == "mia/other"


@pytest.mark.parametrize(
    ("options", "said"), [({"max_steps": 2}, True), ({"dry_run": True}, False)]
)
def test_a_trial_and_a_dry_run_upload_nothing(hub, capsys, options, said):
    """What is not the whole result stays here, and a trial says so."""
    assert (done(**options).exit_code, hub.repositories) == (0, {})
    assert ("the results of a trial stay here" in capsys.readouterr().err) is said


def test_a_result_whose_check_failed_stays_here(shop, hub, capsys, monkeypatch):
    """The command to upload it by hand is said, and works."""
    monkeypatch.setenv("STAND_IN_CHECKS", "[true, false]")
    assert (done().exit_code, hub.repositories) == (0, {})
    said = capsys.readouterr().err
    assert "sft was not uploaded to mia/shop: check 1 of the result" in said
    command = re.search(r"to upload it all the same: hf (upload .*)", said)[1]
    code = "from huggingface_hub.cli.hf import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, *shlex.split(command)],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, check=True, timeout=60,
    )  # fmt: skip
    assert set(hub.files("mia/shop")) == RESULT
    assert done().already_done
    assert "was not uploaded to mia/shop" in capsys.readouterr().err


def test_each_task_has_a_repository_and_an_open_one_is_named(shop, hub, capsys):
    """Each last result has one; who can read an existing one is said before, not changed."""
    tasks = "tasks: [{name: hr, data: {path: train.jsonl}}, {name: law, data: {path: train.jsonl}}]"
    plan = FULL.replace("data: {path: train.jsonl}", tasks)
    (shop / "plan.yaml").write_text(f"{plan}push_to: shop-team/answers\n")
    hr, law = (f"shop-team/answers-{name}" for name in ("hr", "law"))
    hub.repositories[law] = {"private": False, "commits": []}
    done()
    assert f"{law}, which EVERYBODY can read" in capsys.readouterr().err
    assert set(hub.files(hr)) == set(hub.files(law)) == RESULT
    assert hub.repositories[law]["private"] is False


@pytest.mark.parametrize(
    ("environment", "role", "owner", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "write", "mia", "HF_HUB_OFFLINE is set"),
        ({"HF_TOKEN": "", "HF_HOME": "/nobody"}, "write", "mia",
         "has no login for the hub, to upload to mia/shop"),
        ({"HF_TOKEN": "another"}, "write", "mia", "does not take this machine's login"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "write", "mia",
         "does not take this machine's login"),
        ({}, "read", "mia", "the login of mia may read only"),
        ({}, "write", "acme", "who cannot write to acme.*owners it may write to: mia, shop-team"),
    ],
)  # fmt: skip
def test_what_would_keep_it_from_uploading_is_said_before_training(
    shop, hub, monkeypatch, environment, role, owner, said
):
    """Nothing is written, and no minute is lost."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hub.role = role
    with pytest.raises(MachineNotReady, match=f"(?s){said}"):
        done(f"{owner}/shop")
    assert not (shop / "runs").exists()


@pytest.mark.parametrize(
    "value", ["shop", "https://huggingface.co/mia/shop", "mia/shop model", "[mia/shop]"]
)
def test_a_name_that_is_no_repository_is_refused(shop, value):
    """The plan says owner/name."""
    with pytest.raises(InputError, match="push_to") as error:
        done(value)
    assert "a text such as my-name/my-model" in error.value.text()


TOKEN = "the-token-of-mia"


class Hub(ThreadingHTTPServer):
    """A model hub with repositories in memory, for the user mia of the organisation shop-team."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.repositories = {}  # name -> {private, commits: [{file: content}]}
        self.objects = {}  # sha256 -> content
        self.asked, self.role = [], "write"
        self.broken = set()  # parts of paths that are answered with an error of the server
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files(self, name):
        """File -> content of a repository's last commit."""
        return self.repositories[name]["commits"][-1]


class Requests(BaseHTTPRequestHandler):
    """The answers of the hub: what its client asks for on the way of an upload."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        path, body = self.path.partition("?")[0], self.body()
        self.server.asked.append(f"{self.command} {path}")
        code, value, *headers = self.found(path, body)
        content = json.dumps(value).encode()
        self.send_response(code)
        sizes = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, text in {**sizes, **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def found(self, path, body):
        """Status, document and headers."""
        hub = self.server
        match path.strip("/").split("/"):
            case _ if any(part in path for part in hub.broken):
                return 500, {"error": "the hub is on fire"}
            case ["store", digest]:
                hub.objects[digest] = body
                return 200, {}
            case _ if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return 401, {"error": "who are you?"}
            case ["api", "whoami-v2"]:
                who = {"name": "mia", "orgs": [{"name": "shop-team"}], "type": "user"}
                return 200, {**who, "auth": {"accessToken": {"displayName": "t", "role": hub.role}}}
            case ["api", "repos", "create"]:
                return self.created(json.loads(body))
            case ["api", "validate-yaml"]:
                return 200, {"warnings": [], "errors": []}
            case [*_, "lfs", "objects", "batch"]:
                uploads = json.loads(body)["objects"]
                for one in uploads:
                    place = {"href": f"{hub.address}/store/{one['oid']}", "header": {}}
                    one["actions"] = {"upload": place}
                return 200, {"transfer": "basic", "objects": uploads}
            case [_, _, owner, name, *_] if f"{owner}/{name}" not in hub.repositories:
                return 404, {"error": "no such repository"}, ("X-Error-Code", "RepoNotFound")
            case [_, _, owner, name, *_] if self.command == "GET":
                about = {"id": f"{owner}/{name}", "siblings": [], "tags": [], "sha": "0" * 40}
                return 200, {**about, "private": hub.repositories[about["id"]]["private"]}
            case [_, _, _, _, "preupload", _]:
                files = json.loads(body)["files"]
                for file in files:
                    is_large = file["path"].endswith(".safetensors")
                    file |= {"uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
                return 200, {"files": files}
            case [_, _, owner, name, "commit", _]:
                return self.committed(f"{owner}/{name}", body)

    def created(self, given):
        hub, name = self.server, f"{given.get('organization') or 'mia'}/{given['name']}"
        url = f"{hub.address}/{name}"
        if name in hub.repositories:
            return 409, {"error": "it exists", "url": url}
        private = given.get("private", given.get("visibility") == "private")
        hub.repositories[name] = {"private": private, "commits": []}
        return 200, {"url": url, "name": name}

    def committed(self, name, body):
        hub, items = self.server, [json.loads(line) for line in body.decode().splitlines()]
        plain = [item["value"] for item in items if item["key"] == "file"]
        large = [item["value"] for item in items if item["key"] == "lfsFile"]
        files = {one["path"]: base64.b64decode(one["content"]) for one in plain}
        files |= {one["path"]: hub.objects[one["oid"]] for one in large}
        hub.repositories[name]["commits"].append(files)
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"}

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
