"""What is said of a hub model before a run starts: download, licence, gate, room in the cache."""

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from advisor.ground.errors import InputError, MachineNotReady
from advisor.launch.hub import ModelNeed, ask_hub, model_needs
from advisor.model_files.hub_cache import has_weights
from advisor.plan.read import PlanOnDisk, read_plan
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, PLAN, run

GIB = 2**30
FILES = {
    "config.json": 600, "model-1.safetensors": 3 * GIB, "model-2.safetensors": GIB,
    "tokenizer.json": 400, "original/consolidated.pth": 99 * GIB, "model.bin": 50 * GIB,
    "README.md": 5000,
}  # fmt: skip
ANSWER = {
    "gated": False,
    "cardData": {"license": "apache-2.0"},
    "siblings": [{"rfilename": name, "size": size} for name, size in FILES.items()],
}


class Hub(BaseHTTPRequestHandler):
    """A hub with one answer for each model, which notes who asked."""

    models: ClassVar[dict] = {}
    seen: ClassVar[list] = []

    def do_GET(self):
        type(self).seen.append((self.path, self.headers.get("Authorization")))
        name = self.path.removeprefix("/api/models/").split("?")[0].split("/revision/")[0]
        found = self.models.get(name)
        text = json.dumps(found).encode()
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(shop, monkeypatch):
    """A hub of this test, an empty cache, and a plan with a model of that hub."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    Hub.models, Hub.seen = {"org/tiny": ANSWER}, []
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: org/tiny"))
    yield Hub
    server.shutdown()
    server.server_close()


def said_by_run(**options):
    """The lines of a run."""
    lines = []
    run(say=lines.append, **options)
    return lines


def test_a_run_says_what_it_downloads_and_under_which_licence(hub):
    """Of the repository's files only those that are read count; the disk of the cache is named."""
    lines = said_by_run()
    assert "model org/tiny: 4.0 GiB to download (the hub), licence apache-2.0 (the hub)" in lines
    assert any(line.startswith("model cache: ") and line.endswith("on its disk") for line in lines)
    assert any(line.startswith("disk: up to") and line.endswith("free") for line in lines)
    assert any("4.0 GiB to download (the hub)" in line for line in said_by_run(dry_run=True))


def test_a_gated_model_is_told_before_anything_starts(hub, shop, monkeypatch):
    """Without a login exit 4 with the two steps; with one it starts."""
    hub.models = {"org/tiny": {**ANSWER, "gated": "manual", "cardData": {"license": "llama3.1"}}}
    with pytest.raises(MachineNotReady) as error:
        run(output="out")
    text = error.value.text()
    assert "its licence (llama3.1) must be accepted" in text
    assert "this machine is not logged in" in text
    assert "accept the licence at https://huggingface.co/org/tiny, then `hf auth login`" in text
    assert not (shop / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "some-token")
    lines = said_by_run()
    assert any("to be accepted at https://huggingface.co/org/tiny" in line for line in lines)
    assert not any("some-token" in line for line in lines)


def test_a_full_disk_of_the_cache_is_told_before_the_download(hub, shop, monkeypatch):
    """Both numbers are named, and what else the same disk must hold."""
    monkeypatch.setattr("advisor.launch.checks.disk.free_bytes", lambda path: 2 * GIB)
    with pytest.raises(MachineNotReady) as error:
        run(output="out")
    text = error.value.text()
    assert re.search(
        r"2\.0 GiB free on the disk of the model cache, about 4\.[2-5] GiB needed", text
    )
    assert "4.0 GiB to download, " in text
    assert "for results and checkpoints, 0.25 GiB to spare" in text
    assert "HF_HOME=DIR" in text
    assert not (shop / "out").exists()


def test_a_cached_model_asks_nobody(hub, shop):
    """With its weights in the cache nothing is downloaded, and the hub is not asked."""
    write_fake_model(shop / "hub/hub/models--org--tiny/snapshots/abc", CONFIG)
    lines = said_by_run()
    assert any("in the model cache already, nothing to download" in line for line in lines)
    assert not any(line.startswith("model cache:") for line in lines)
    assert hub.seen == []


def test_a_configuration_alone_is_not_the_model(hub, shop):
    """Looking a model up leaves its config.json in the cache: the weights are still to come."""
    snapshot = shop / "hub/hub/models--org--tiny/snapshots/abc"
    write_fake_model(snapshot, CONFIG)
    (snapshot / "model.safetensors").unlink()
    assert not has_weights("org/tiny", None)
    assert any("4.0 GiB to download (the hub)" in line for line in said_by_run())
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "one.safetensors").write_bytes(b"")
    assert not has_weights("org/tiny", None)
    (snapshot / "two.safetensors").write_bytes(b"")
    assert has_weights("org/tiny", None)


def test_a_model_that_the_hub_does_not_know_is_bad_input(hub):
    """The name or the revision is wrong, or a login is missing."""
    hub.models = {}
    with pytest.raises(InputError, match="no such model that you may read"):
        run()


def test_an_answer_of_another_kind_stops_nothing(hub):
    """A mirror that answers with something else: size and licence are not known, and said so."""
    for answer in ([], {"siblings": "x", "cardData": 7, "tags": [3]}):
        hub.models = {"org/tiny": answer}
        lines = said_by_run(output=f"out{len(str(answer))}")
        assert any(
            "download of unknown size, licence not known: see https://huggingface.co/org/tiny"
            in line
            for line in lines
        )


def test_the_token_goes_to_secure_addresses_alone(hub, monkeypatch):
    """It is sent to this machine or over https, never in the open."""
    from advisor.launch import hub as module

    sent = []

    class Opener:
        def open(self, request, timeout):
            sent.append((request.full_url, request.unredirected_hdrs))
            raise OSError("not now")

    monkeypatch.setenv("HF_TOKEN", "some-token")
    monkeypatch.setattr(module.urllib.request, "build_opener", lambda *handlers: Opener())
    for endpoint in ("http://mirror.example", "https://mirror.example"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(MachineNotReady):
            ask_hub(ModelNeed(model="org/tiny", what="model org/tiny"))
    assert [bool(headers) for _, headers in sent] == [False, True]


def test_without_the_network_the_catalogue_says_what_it_knows(shop, monkeypatch):
    """The size comes from the parameters and says so, the licence from the catalogue."""
    from advisor.situation.models import model_shape

    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: Qwen/Qwen3-8B"))
    plan = PlanOnDisk(plan=read_plan("plan.yaml"), path=shop / "plan.yaml")
    (need,) = model_needs(plan, [], model_shape("Qwen/Qwen3-8B")[0])
    assert need.line() == (
        "model Qwen/Qwen3-8B: 15.3 GiB to download (its parameters in 16 bit),"
        " licence apache-2.0 (catalogue)"
    )
