"""`advise export RUN --to vllm`: the folder that serves a result with vLLM, and what is refused."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from advisor.export.exporter import ExportRequest
from advisor.extras.vllm.folder import NOT_HELD, export, made_beside, why_not_held
from advisor.ground.errors import InputError
from tests.export.runs import CHATML, write_adapter, write_run


@pytest.fixture
def take(tmp_path):
    """Exports a run; gives what was said, and the calls of tools."""
    said: list[str] = []
    calls: list[tuple[str, ...]] = []

    def run_tool(name, *arguments):
        calls.append((name, *arguments))
        return 0

    def take(run: Path, **given) -> Path:
        out = tmp_path / "out"
        wanted = ExportRequest(
            source=run, out=out, only=given.get("only"), say=said.append, run_tool=run_tool
        )
        assert export(wanted) == 0
        return out

    take.said, take.calls = said, calls
    return take


def words(folder: Path, *arguments: str) -> list[str]:
    """What the script hands to `vllm`: it runs with a `vllm` that prints its words."""
    place = folder.parent / "bin"
    place.mkdir(exist_ok=True)
    (place / "vllm").write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n')
    (place / "vllm").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(folder / "serve.sh"), *arguments],
        capture_output=True, text=True, check=True, env={"PATH": f"{place}:/usr/bin:/bin"},
    )  # fmt: skip
    where, *found = done.stdout.splitlines()
    assert Path(where).resolve() == folder.resolve()
    return found


def test_departments_share_one_base(tmp_path, take):
    """One server holds the base once and a module for each task, under the task's name."""
    run = write_run(tmp_path / "run", tasks=("legal", "hr"), rank=12)
    out = take(run)
    assert words(out, "--port", "9000") == [
        "serve", "org/base", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
        "--chat-template", "chat_template.jinja", "--generation-config", ".", "--lora-modules",
        "legal=adapters/legal", "hr=adapters/hr", "--port", "9000",
    ]  # fmt: skip
    assert (out / "chat_template.jinja").read_text() == CHATML
    for task in ("legal", "hr"):
        stage = run / "stages" / f"sft-{task}"
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / "adapters" / task / name).read_bytes() == (stage / name).read_bytes()
    assert not take.calls
    assert "names, shapes and rank of the tensors of 2 layers" in "\n".join(take.said)


def test_answers_end_where_any_of_the_results_ends_them(tmp_path, take):
    """The base's own generation_config.json may lack a token that training added; the server gets
    those of every result.
    """
    run = write_run(tmp_path / "run", tasks=("legal", "hr"))
    for task, ends in (("legal", 2), ("hr", [0, 2])):
        path = run / "stages" / f"sft-{task}" / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": ends, "temperature": 0.5}))
    out = take(run)
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2, 0], "temperature": 0.5}


def test_the_request_in_the_script_is_one_that_the_server_takes(tmp_path, take):
    """It asks for a name that the server knows, with messages or a text."""
    for number, template in enumerate((CHATML, None)):
        run = write_run(tmp_path / f"run{number}", template=template)
        (tmp_path / "out").rename(tmp_path / "before") if number else None
        script = (take(run) / "serve.sh").read_text()
        (line,) = [line for line in script.splitlines() if "curl" in line]
        body = json.loads(shlex.split(line.removeprefix("#"))[-1])
        assert body["model"] == "sft"
        assert ("messages" in body) == (template is not None)
        assert ("--chat-template" in script) == (template is not None)


def test_a_whole_model_is_served_from_its_folder(tmp_path, take):
    """Nothing is copied or merged."""
    run = write_run(tmp_path / "a run", update="full", settings={"weights_dtype": "bfloat16"})
    found = words(take(run))
    assert found[:4] == ["serve", str(run / "stages" / "sft"), "--served-model-name", "shop"]
    assert found[found.index("--dtype") + 1] == "bfloat16"
    assert "--enable-lora" not in found
    assert not take.calls


def test_a_module_that_vllm_cannot_hold_is_merged(tmp_path, take):
    """What the reason is stands on the screen; the merged model lies beside the script."""
    run = write_run(tmp_path / "run")
    write_adapter(run / "stages" / "sft", use_dora=True)
    out = take(run)
    ((*before, merged, _, device, _, only),) = take.calls
    assert (*before, device, only) == ("merge", str(run), "--out", "cpu", "sft")
    assert Path(merged).name == "model"
    assert Path(merged).parent.name.startswith(f".{out.name}.")  # renamed once it is whole
    assert words(out)[:4] == ["serve", "model", "--served-model-name", "shop"]
    assert "sft is merged: it splits weights into size and direction (DoRA)" in take.said[0]


def test_what_needs_a_server_of_its_own_is_named(tmp_path, take):
    """One of two tasks must be merged: it is exported by itself."""
    run = write_run(tmp_path / "run", tasks=("legal", "hr"))
    write_adapter(run / "stages" / "sft-hr", modules_to_save=["embed_tokens"])
    with pytest.raises(InputError, match="hr needs a vLLM server of its own") as refused:
        take(run)
    assert "--only hr" in refused.value.faults[0].hint
    assert words(take(run, only="hr"))[1] == "model"


def test_only_one_of_several(tmp_path, take):
    """--only takes one task."""
    out = take(write_run(tmp_path / "run", tasks=("legal", "hr")), only="hr")
    assert words(out)[-1] == "hr=adapters/hr"


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
    with pytest.raises(InputError, match=match) as found:
        take(write_run(tmp_path / "run", **change))
    assert found.value.faults[0].hint
    assert not (tmp_path / "out").exists()


def test_one_server_has_one_template(tmp_path, take):
    """Modules with different templates need servers of their own."""
    run = write_run(tmp_path / "run", tasks=("legal", "hr"))
    (run / "stages" / "sft-hr" / "chat_template.jinja").write_text(CHATML + "x")
    with pytest.raises(InputError, match="legal and hr have different chat templates"):
        take(run)


def test_nothing_is_written_over(tmp_path, take):
    """A folder with something in it stays as it is."""
    run = write_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        take(run)


@pytest.mark.parametrize("key", sorted(NOT_HELD))
def test_keys_that_vllm_passes_over_are_reasons_to_merge(tmp_path, key):
    """vLLM reads rank, scale and modules; what else changes a LoRA it would ignore or refuse."""
    write_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert why_not_held(tmp_path, config) is None
    assert NOT_HELD[key] in str(why_not_held(tmp_path, {**config, key: {"x": 1}}))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"r": 1024}, "takes 512 at most"),
        ({"r": 8}, "not the rank 8"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "no LoRA"),
    ],
)
def test_other_reasons_to_merge(tmp_path, config, match):
    """Rank, shapes, biases and kind."""
    write_adapter(tmp_path)
    own = json.loads((tmp_path / "adapter_config.json").read_text())
    assert match in str(why_not_held(tmp_path, {**own, **config}))


def test_damaged_weights_are_found(tmp_path):
    """A file that was cut off is no module."""
    write_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "cannot be read" in str(why_not_held(tmp_path, {"peft_type": "LORA", "r": 4}))


def test_what_ends_an_export_leaves_nothing_behind(tmp_path):
    """A folder is whole or not there: a full disk or Ctrl-C takes the half away."""
    out = tmp_path / "served"

    def stopped():
        with made_beside(out) as work:
            work.mkdir()
            (work / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
