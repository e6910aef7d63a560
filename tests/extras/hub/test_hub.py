"""Results on the hub: uploaded once, by one key of the plan, if their checks passed; a failed upload
loses nothing.
"""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from advisor.commands.training import show_run
from advisor.ground.errors import InputError, MachineNotReady
from advisor.launch import stages
from advisor.plan.read import read_plan
from advisor.record.files import read_record
from advisor.render.report import write_report
from tests.extras.hub.server import TOKEN, Hub
from tests.launch.conftest import PLAN, run

pytest.importorskip("huggingface_hub", reason="needs the extra train")
RESULT = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"}


@pytest.fixture
def hub(shop, monkeypatch):
    """A hub on this machine that mia is logged in to; the plan pushes to her repository."""
    from huggingface_hub import _commit_api, constants

    found = Hub()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The hub's other way of storing is a service of its own, in compiled code.
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    monkeypatch.setenv("STAND_IN_CHECKS", "[true, true]")
    (shop / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (shop / "plan.yaml").write_text(f"{PLAN}push_to: mia/shop\n")
    yield found
    found.close()


def done(**options):
    return run(on_end=write_report, **options)


def commits(hub, name="mia/shop"):
    return len(hub.repositories[name]["commits"]) if name in hub.repositories else 0


def test_a_result_is_uploaded_once_with_its_card_and_nothing_else(shop, hub, capsys):
    """The files of the result and a card go into a new private repository: no checkpoint, no row.
    run.json has the commit, and the next call uploads nothing.
    """
    found = done()
    assert found.errors == ()
    said = capsys.readouterr().err
    assert "the result goes to mia/shop, a new private repository" in said
    assert "sft is on the hub:" in said
    assert hub.repositories["mia/shop"]["private"] is True
    uploaded = hub.files("mia/shop")
    assert set(uploaded) == RESULT
    stage = found.folder / "stages" / "sft"
    assert all(content == (stage / name).read_bytes() for name, content in uploaded.items())
    card = uploaded["README.md"].decode()
    assert "Licence of the base: mit." in card
    (digest,) = (
        held
        for name, held in read_record(found.folder).input_digests.items()
        if name.startswith("data")
    )
    assert f"its digest: {digest}" in card
    for row in (shop / "train.jsonl").read_text().splitlines():
        assert json.loads(row)["messages"][1]["content"] not in card
    pushed = json.loads((found.folder / "run.json").read_text())["extras"]["hub"]["sft"]
    assert (pushed["repository"], len(pushed["commit"])) == ("mia/shop", 40)
    assert TOKEN not in (found.folder / "run.json").read_text() + said

    asked = len(hub.asked)
    assert done().already_done
    assert len(hub.asked) == asked, "a finished run asks the hub nothing"


def test_a_failed_upload_loses_nothing_and_the_next_call_only_uploads(
    shop, hub, capsys, monkeypatch
):
    """The run is done, exit code 4, and the error names the command; it trains nothing again."""
    hub.broken = {"/commit/"}
    found = done()
    assert (found.record.status, found.exit_code) == ("done", 4)
    assert show_run(found) == 4
    said = capsys.readouterr()
    assert "error: push_to: could not upload sft to mia/shop" in said.err
    command = f"to try again, without training: advise run runs/{found.folder.name}"
    assert command in said.err
    assert show_run(found, as_json=True) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "done"
    assert "could not upload" in document["error"][0]["what"]

    hub.broken = set()
    monkeypatch.setattr(stages.StageRunner, "train", None)  # nothing is trained
    again = run(found.folder)
    assert (again.exit_code, commits(hub)) == (0, 1)
    assert "mia/shop" in again.record.extras["hub"]["sft"]["url"]


def test_a_key_that_is_added_later_uploads_the_finished_result(shop, hub, capsys):
    """The run stays the same, and the plan in its folder has the key from then on."""
    (shop / "plan.yaml").write_text(PLAN)
    first = done()
    assert hub.asked == []
    (shop / "plan.yaml").write_text(f"{PLAN}push_to: mia/other\n")
    found = done()
    assert (found.folder, commits(hub, "mia/other")) == (first.folder, 1)
    assert read_plan(found.folder / "plan.yaml").extra_key("hub", "push_to") == "mia/other"


@pytest.mark.parametrize("how", ["a failed check", "a trial", "a dry run"])
def test_what_is_not_sound_stays_here(shop, hub, capsys, monkeypatch, how):
    """A result whose check failed is not uploaded, and the command to do it by hand is said; a
    trial and a dry run upload nothing.
    """
    options = {"a trial": {"max_steps": 2}, "a dry run": {"dry_run": True}}.get(how, {})
    if how == "a failed check":
        monkeypatch.setenv("STAND_IN_CHECKS", "[true, false]")
    assert done(**options).exit_code == 0
    assert hub.repositories == {}
    said = capsys.readouterr().err
    if how == "a failed check":
        assert "sft was not uploaded to mia/shop: check 1 of the result" in said
        command = re.search(r"to upload it all the same: hf (upload .*)", said)[1]
        (shop / "hf.py").write_text("from huggingface_hub.cli.hf import main\nmain()\n")
        subprocess.run(
            [sys.executable, "hf.py", *shlex.split(command)],
            env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, check=True, timeout=60,
        )  # fmt: skip
        assert set(hub.files("mia/shop")) == RESULT
        assert done().already_done
        assert "was not uploaded to mia/shop" in capsys.readouterr().err
    elif how == "a trial":
        assert "the results of a trial stay here" in said


def test_each_task_has_a_repository_and_an_open_one_is_named(shop, hub, capsys):
    """A plan with tasks uploads the last result of each; who can read a repository that exists
    already is not changed, and is said before the run.
    """
    tasks = "tasks: [{name: hr, data: {path: train.jsonl}}, {name: law, data: {path: train.jsonl}}]"
    plan = PLAN.replace("data: {path: train.jsonl}", tasks).replace("update: lora", "update: full")
    plan = "".join(line + "\n" for line in plan.splitlines() if "rank:" not in line)
    (shop / "plan.yaml").write_text(f"{plan}push_to: shop-team/answers\n")
    hub.repositories["shop-team/answers-law"] = {"private": False, "commits": []}
    done()
    assert "shop-team/answers-law, which EVERYBODY can read" in capsys.readouterr().err
    for name in ("shop-team/answers-hr", "shop-team/answers-law"):
        assert set(hub.files(name)) == RESULT
    assert hub.repositories["shop-team/answers-law"]["private"] is False


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no login", "has no login for the hub, to upload to mia/shop"),
        ("a wrong token", "does not take this machine's login"),
        ("a token that reads", "the login of mia may read only"),
        ("another owner", "who cannot write to acme.*owners it may write to: mia, shop-team"),
        ("no network", "does not take this machine's login"),
    ],
)
def test_what_would_keep_it_from_uploading_is_said_before_training(
    shop, hub, monkeypatch, how, said
):
    """Nothing is written, and no minute is lost."""
    if how == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "no login":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_HOME", str(shop / "nobody"))
    elif how == "a wrong token":
        monkeypatch.setenv("HF_TOKEN", "another")
    elif how == "a token that reads":
        hub.role = "read"
    elif how == "another owner":
        (shop / "plan.yaml").write_text(f"{PLAN}push_to: acme/shop\n")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineNotReady) as error:
        done()
    assert not (shop / "runs").exists()
    assert re.search(said, error.value.text(), re.DOTALL)


@pytest.mark.parametrize(
    "value", ["shop", "https://huggingface.co/mia/shop", "mia/shop model", "[mia/shop]"]
)
def test_a_name_that_is_no_repository_is_refused(shop, value):
    """The plan says owner/name."""
    (shop / "plan.yaml").write_text(f"{PLAN}push_to: {value}\n")
    with pytest.raises(InputError, match="push_to") as error:
        run()
    assert "a text such as my-name/my-model" in error.value.text()
