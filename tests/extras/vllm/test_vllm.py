"""`advise export RUN --to vllm`: the folder that serves a result with vLLM, and what is refused."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from advisor.export.exporter import ExportRequest
from advisor.extras.vllm.folder import NOT_HELD, export, made_beside, why_not_held
from advisor.ground.errors import InputError
from advisor.ground.files import TEMPORARY
from tests.export.runs import CHATML, write_adapter, write_run
from tests.extras.conftest import write_program


@pytest.fixture
def take(tmp_path):
    """Exports tmp_path/run; gives what was said, and the calls of tools."""

    def take(*, only=None):
        wanted = ExportRequest(
            source=take.run, out=tmp_path / "out", only=only, say=take.said.append,
            run_tool=take.tool,
        )  # fmt: skip
        assert export(wanted) == 0
        return wanted.out

    take.run, take.said, take.tool = tmp_path / "run", [], Mock(return_value=0)
    return take


@pytest.fixture
def departments(take):
    """A run with two tasks: the folder of each one's result."""
    write_run(take.run, tasks=("legal", "hr"), rank=12)
    return {task: take.run / "stages" / f"sft-{task}" for task in ("legal", "hr")}


def words(folder: Path, *arguments: str) -> list[str]:
    """What the script hands to `vllm`: it runs with a `vllm` that prints its words."""
    place = folder.parent / "bin"
    place.mkdir(exist_ok=True)
    write_program(place / "vllm", 'pwd\nfor word in "$@"; do echo "$word"; done')
    done = subprocess.run(
        ["/bin/sh", str(folder / "serve.sh"), *arguments],
        capture_output=True, text=True, check=True, env={"PATH": f"{place}:/usr/bin:/bin"},
    )  # fmt: skip
    where, *found = done.stdout.splitlines()
    assert Path(where).resolve() == folder.resolve()
    return found


def test_departments_share_one_base(take, departments, approved):
    """One server holds the base, each task's module by name, and every result's end tokens."""
    for task, ends in (("legal", 2), ("hr", [0, 2])):
        config = {"eos_token_id": ends, "temperature": 0.5}
        (departments[task] / "generation_config.json").write_text(json.dumps(config))
    out = take()
    assert words(out, "--port", "9000") == [
        "serve", "org/base", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
        "--chat-template", "chat_template.jinja", "--generation-config", ".", "--lora-modules",
        "legal=adapters/legal", "hr=adapters/hr", "--port", "9000",
    ]  # fmt: skip
    assert (out / "chat_template.jinja").read_text() == CHATML
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2, 0], "temperature": 0.5}
    for task, stage in departments.items():
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / "adapters" / task / name).read_bytes() == (stage / name).read_bytes()
    assert not take.tool.called
    approved([take.said, (out / "serve.sh").read_text().splitlines()])
    shutil.rmtree(out)
    assert words(take(only="hr"))[-1] == "hr=adapters/hr"


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_request_in_the_script_is_one_that_the_server_takes(take, template, approved):
    """It asks for a name that the server knows, with messages or a text."""
    write_run(take.run, template=template)
    approved(script := (take() / "serve.sh").read_text())
    (line,) = [line for line in script.splitlines() if "curl" in line]
    body = json.loads(shlex.split(line.removeprefix("#"))[-1])
    assert body["model"] == "sft"
    assert ("messages" in body) == ("--chat-template" in script) == (template is not None)


def test_a_whole_model_is_served_from_its_folder(tmp_path, take, approved):
    """Nothing is copied or merged."""
    take.run = tmp_path / "a run"
    write_run(take.run, update="full", settings={"weights_dtype": "bfloat16"})
    found = words(out := take())
    approved([take.said, (out / "serve.sh").read_text().splitlines()])
    assert found[:4] == ["serve", str(take.run / "stages" / "sft"), "--served-model-name", "shop"]
    assert (found[found.index("--dtype") + 1], "--enable-lora" in found) == ("bfloat16", False)
    assert not take.tool.called


def test_a_module_that_vllm_cannot_hold_is_merged(take):
    """What the reason is stands on the screen; the merged model lies beside the script."""
    write_adapter(write_run(take.run) / "stages" / "sft", use_dora=True)
    out = take()
    take.tool.assert_called_once()
    *before, merged, _, device, _, only = take.tool.call_args.args
    assert (*before, device, only) == ("merge", str(take.run), "--out", "cpu", "sft")
    assert Path(merged).name == "model"
    work = Path(merged).parent.name  # renamed once it is whole
    assert (work.startswith(TEMPORARY), work.endswith(out.name)) == (True, True)
    assert words(out)[:4] == ["serve", "model", "--served-model-name", "shop"]
    assert "sft is merged: it splits weights into size and direction (DoRA)" in take.said[0]


def test_what_needs_a_server_of_its_own_is_named(take, departments):
    """A task that must be merged, and modules with different templates."""
    write_adapter(departments["hr"], modules_to_save=["embed_tokens"])
    with pytest.raises(InputError, match="hr needs a vLLM server of its own") as refused:
        take()
    assert "--only hr" in refused.value.faults[0].hint
    assert words(take(only="hr"))[1] == "model"
    write_adapter(departments["hr"])
    (departments["hr"] / "chat_template.jinja").write_text(CHATML + "x")
    with pytest.raises(InputError, match="legal and hr have different chat templates"):
        take()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"update": "prefix"}, "sft is a prefix, which adds no weights to merge"),
        ({"update": "adapter"}, "is a bottleneck adapter"),
        ({"template": "{% if %}"}, "chat template is broken"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(tmp_path, take, change, match):
    """Each reason comes with the way out."""
    write_run(take.run, **change)
    with pytest.raises(InputError, match=match) as found:
        take()
    assert found.value.faults[0].hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        *[({key: {"x": 1}}, why) for key, why in sorted(NOT_HELD.items())],
        ({"r": 1024}, "takes 512 at most"),
        ({"r": 8}, "not the rank 8"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "no LoRA"),
    ],
)
def test_keys_that_vllm_passes_over_are_reasons_to_merge(tmp_path, config, match):
    """It reads rank, scale and modules; damaged weights are a reason, too."""
    write_adapter(tmp_path)
    own = json.loads((tmp_path / "adapter_config.json").read_text())
    assert why_not_held(tmp_path, own) is None
    assert match in str(why_not_held(tmp_path, {**own, **config}))
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "cannot be read" in str(why_not_held(tmp_path, own))


def test_what_ends_an_export_leaves_nothing_behind(tmp_path, take):
    """A folder is whole or not there after a full disk or Ctrl-C; what was in it stays."""

    def stopped():
        with made_beside(tmp_path / "served") as work:
            work.mkdir()
            (work / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    write_run(take.run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        take()
