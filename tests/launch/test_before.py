"""What is said before a run starts: of a hub model its download, licence, gate and the room in the
cache; and whether this machine can run a plan.
"""

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar
from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from advisor.commands.wizard import check_machine
from advisor.ground.errors import MachineNotReady
from advisor.launch import hub as hub_module
from advisor.launch.hub import ModelNeed, ask_hub
from advisor.model_files.hub_cache import has_weights
from advisor.plan.read import read_plan
from advisor.record.next_step import trial_steps
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, GIB, MACHINE, PLAN, SECOND, gpu, machine, refused, run

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
def no_cache(shop, monkeypatch):
    """An empty cache of hub models, and no login."""
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(shop, monkeypatch, no_cache):
    """A hub of this test, and a plan with a model of that hub."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    Hub.models, Hub.seen = {"org/tiny": ANSWER}, []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: org/tiny"))
    yield Hub
    server.shutdown()
    server.server_close()


def said_by_run(**options):
    """The lines of a run."""
    lines = []
    run(say=lines.append, **options)
    return "\n".join(lines)


UNKNOWN = "download of unknown size, licence not known: see https://huggingface.co/org/tiny"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        # Of the repository's files only those that are read count.
        (ANSWER, "4.0 GiB to download (the hub), licence apache-2.0 (the hub)"),
        # A mirror that answers with something else.
        ([], UNKNOWN),
        ({"siblings": "x", "cardData": 7, "tags": [3]}, UNKNOWN),
    ],
)
def test_a_run_says_what_it_downloads_and_under_which_licence(hub, answer, line):
    """And what it needs on which disk."""
    hub.models = {"org/tiny": answer}
    said = said_by_run()
    assert re.search(rf"(?m)^model org/tiny: {re.escape(line)}", said)
    assert re.search(r"(?m)^model cache: .* on its disk$", said)
    assert re.search(r"(?m)^disk: up to .* free$", said)
    assert line in said_by_run(dry_run=True)


def test_a_gated_model_is_told_before_anything_starts(hub, shop, monkeypatch):
    """Without a login exit 4 with the two steps; with one it starts."""
    hub.models = {"org/tiny": {**ANSWER, "gated": "manual", "cardData": {"license": "llama3.1"}}}
    text = refused(MachineNotReady, output="out")
    assert "its licence (llama3.1) must be accepted" in text
    assert "this machine is not logged in" in text
    assert "accept the licence at https://huggingface.co/org/tiny, then `hf auth login`" in text
    assert not (shop / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "some-token")
    said = said_by_run()
    assert "to be accepted at https://huggingface.co/org/tiny" in said
    assert "some-token" not in said


def test_a_full_disk_of_the_cache_is_told_before_the_download(hub, shop, monkeypatch):
    """Both numbers are named, and what else the same disk must hold."""
    monkeypatch.setattr("advisor.launch.checks.disk.free_bytes", lambda path: 2 * GIB)
    text = refused(MachineNotReady, output="out")
    assert re.search(
        r"2\.0 GiB free on the disk of the model cache, about 4\.[2-5] GiB needed", text
    )
    assert "4.0 GiB to download, " in text
    assert "for results and checkpoints, 0.25 GiB to spare" in text
    assert "HF_HOME=DIR" in text
    assert not (shop / "out").exists()


def test_a_cached_model_asks_nobody(hub, shop):
    """With its weights in the cache nothing is downloaded, and the hub is not asked. A configuration
    alone is not the model: looking a model up leaves it there, and the weights are still to come.
    """
    snapshot = shop / "hub/hub/models--org--tiny/snapshots/abc"
    write_fake_model(snapshot, CONFIG)
    said = said_by_run()
    assert "in the model cache already, nothing to download" in said
    assert "\nmodel cache:" not in f"\n{said}"
    assert hub.seen == []
    (snapshot / "model.safetensors").unlink()
    assert not has_weights("org/tiny", None)
    assert "4.0 GiB to download (the hub)" in said_by_run(output="other")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, is_whole in (("one", False), ("two", True)):
        (snapshot / f"{name}.safetensors").write_bytes(b"")
        assert has_weights("org/tiny", None) is is_whole


def test_a_model_that_the_hub_does_not_know_is_bad_input(hub):
    """The name or the revision is wrong, or a login is missing."""
    hub.models = {}
    assert "no such model that you may read" in refused()


def test_the_token_goes_to_secure_addresses_alone(hub, monkeypatch):
    """It is sent to this machine or over https, never in the open."""
    opener = Mock(**{"open.side_effect": OSError("not now")})
    monkeypatch.setenv("HF_TOKEN", "some-token")
    monkeypatch.setattr(hub_module.urllib.request, "build_opener", lambda *handlers: opener)
    for endpoint in ("http://mirror.example", "https://mirror.example"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(MachineNotReady):
            ask_hub(ModelNeed(model="org/tiny", what="model org/tiny"))
    sent = [bool(call.args[0].unredirected_hdrs) for call in opener.open.call_args_list]
    assert sent == [False, True]


# --------------------------------------------------------------------------- before a run

WITH_GPU = machine(gpu(free=20))


def here(shop, machine, plan=PLAN):
    """What stands between a plan in the shop's folder and a run on the machine."""
    (shop / "plan.yaml").write_text(plan)
    return check_machine(read_plan("plan.yaml"), shop / "plan.yaml", machine)


def test_a_plan_for_another_machine_is_told_from_what_can_be_mended_here(shop):
    """Without the device, with too few of them or too little memory, it is another machine's plan.
    Packages that are missing are no reason for one: the line that installs them is with them.
    """
    on_gpu = PLAN + "launch: {device: cuda}\n"
    none = "the plan is for an NVIDIA GPU (launch.device: cuda), and this machine has no usable GPU"
    assert here(shop, MACHINE, on_gpu).other_machine == none
    assert here(shop, WITH_GPU, on_gpu).other_machine == ""
    two = on_gpu.replace("cuda", "cuda, processes: 2")
    wanted = "wants 2 processes, one per GPU, and 1 can be used"
    assert wanted in here(shop, WITH_GPU, two).other_machine
    large = on_gpu.replace("model: model", "model: Qwen/Qwen3-32B")
    found = here(shop, machine(gpu(total=12, free=12, name="RTX 3060")), large)
    assert found.other_machine.startswith("stage sft needs about ")
    assert "GiB, and this machine has 1" in found.other_machine
    found = here(shop, MACHINE)
    assert (found.other_machine, found.lacking) == ("", ())
    found = here(shop, replace(MACHINE, software={}))
    assert found.other_machine == ""
    assert "packages that are not installed: torch" in found.lacking[0].what
    assert "pip install" in found.lacking[0].hint


@pytest.mark.usefixtures("no_cache")
def test_the_download_is_known_before_it_starts(shop):
    """A folder needs none; a hub model that is not cached is as large as its parameters."""
    assert here(shop, MACHINE).download_bytes == 0
    hub = here(shop, MACHINE, PLAN.replace("model: model", "model: Qwen/Qwen3-8B"))
    assert 15 * GIB < hub.download_bytes < 16 * GIB
    assert hub.downloads[0] == (
        "model Qwen/Qwen3-8B: 15.3 GiB to download (its parameters in 16 bit),"
        " licence apache-2.0 (catalogue)"
    )
    assert hub.downloads[1].startswith("model cache: ")
    unknown = here(shop, MACHINE, PLAN.replace("model: model", "model: nobody/knows-this"))
    assert unknown.download_bytes is None


@pytest.mark.usefixtures("no_cache")
def test_a_licence_that_must_be_accepted_is_told_before_a_run(shop, monkeypatch):
    """The catalogue knows which models ask for it; a login may have access already."""
    gated = PLAN.replace("model: model", "model: meta-llama/Llama-3.1-8B")
    (fault,) = here(shop, MACHINE, gated).lacking
    assert fault.headline.startswith("model meta-llama/Llama-3.1-8B: its licence (llama3.1) must")
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B, then `hf auth login`" in fault.hint
    monkeypatch.setenv("HF_TOKEN", "some-token")
    assert here(shop, MACHINE, gated).lacking == ()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (PLAN, 13),  # 4 rows a step
        (PLAN.replace("micro_batch_size: 4", "micro_batch_size: 8\n    grad_accum: 8"), 3),
        (PLAN + "launch: {device: cuda, processes: 2}\n", 7),
        (PLAN + SECOND.replace("}", ", micro_batch_size: 16}"), 4),
    ],
)
def test_a_trial_reads_about_fifty_rows(shop, text, steps):
    """Its steps follow from the rows a step, and are never fewer than three."""
    (shop / "plan.yaml").write_text(text)
    assert trial_steps(read_plan("plan.yaml")) == steps
