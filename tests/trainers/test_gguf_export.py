"""Results of runs as GGUF files: what is written, how it is called, what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from advisor.export.exporter import ExportRequest, exporters
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from tests.trainers.test_results import lora_run
from trainers.tools.gguf import export as exporting
from trainers.tools.gguf.export import Job, check_kind, export
from trainers.tools.gguf.proof import Proof


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr(exporting, "find_llama_server", lambda: None)


@pytest.fixture
def engine(monkeypatch):
    """llama-server is a stub that finds these faults; what transformers computes is what it
    computes.
    """
    stub = SimpleNamespace(faults=[], kinds=[])

    def prove(program, path, of, kind):
        assert gguf.GGUFReader(path).tensors
        stub.kinds.append(kind)
        known = {"texts": 1, "prompts": len(of.answers), "faults": stub.faults}
        return Proof(kind=kind, needed=0.95, **known)

    monkeypatch.setattr(exporting, "prove", prove)
    monkeypatch.setattr(exporting, "find_llama_server", lambda: Path("llama-server"))
    monkeypatch.setattr("trainers.tools.gguf.proof.LONGEST_ANSWER", 8)
    monkeypatch.setattr("trainers.tools.gguf.proof.ANSWER_TOKENS", 4)
    return stub


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def recorded(folder: Path) -> dict:
    """What the proof of the only file says."""
    (record,) = json.loads((folder / "proof.json").read_text())["files"]
    return record


def test_a_proved_file_has_a_record(run, engine, tmp_path, capsys):
    """A second export does not overwrite it."""
    job = Job(run=run, out=tmp_path / "out", say=print)
    (file,) = export(job)
    assert names(job.out) == ["proof.json", f"{run.name}-F16.gguf"]
    text = capsys.readouterr().out
    assert "merged into the original weights" in text
    assert "proved with llama.cpp" in text
    assert f"llama-server -m {file} --jinja" in text
    record = recorded(job.out)
    assert (record["proved"], record["kind"], record["proof"]["faults"]) == (True, "F16", [])
    assert engine.kinds == ["F16"]  # whose limits hold
    with pytest.raises(InputError, match="is already there"):
        export(job)


def test_a_file_that_differs_shows_in_the_name_and_the_exit_code(run, engine, tmp_path, capsys):
    """Exit code 5, as for a merged model that differs; what differs is said."""
    engine.faults.append("only 0.0% of 4 tokens are the same")
    with pytest.raises(TrainingFailed, match=r"not the model: .*-Q8_0\.differs\.gguf") as error:
        export(Job(run=run, out=tmp_path / "out", kind="Q8_0", say=print))
    assert error.value.exit_code == 5
    assert names(tmp_path / "out") == ["proof.json", f"{run.name}-Q8_0.differs.gguf"]
    said = capsys.readouterr().out
    assert "not the model: only 0.0%" in said
    assert "serve it" not in said


def test_without_llama_cpp_the_file_is_written_and_not_compared(
    run, nowhere, tmp_path, request, capsys
):
    """That is said, with what to install; once it is there, the file is written again and
    compared.
    """
    job = Job(run=run, out=tmp_path / "out", say=print)
    (file,) = export(job)
    assert names(job.out) == ["proof.json", f"{run.name}-F16.gguf"]
    said = capsys.readouterr().out
    assert "written; not compared with the trained model" in said
    assert "install llama.cpp" in said.splitlines()[-1]
    assert (recorded(job.out)["proved"], recorded(job.out)["proof"]) == (False, None)
    request.getfixturevalue("engine")
    assert export(job) == [file]
    assert recorded(job.out)["proved"]


def test_tensors_that_transformers_leaves_out_are_counted(nowhere, tiny_model, tmp_path, capsys):
    """Layers that predict further tokens are in no GGUF file: that is said, and stays in the record."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    more = {f"mtp.{name}.weight": weights["model.norm.weight"].clone() for name in ("norm", "fc")}
    save_file(weights | more, base / "model.safetensors", metadata={"format": "pt"})
    export(Job(run=lora_run(tmp_path / "run", base, {"legal": 1}), out=tmp_path / "out", say=print))
    note = "since transformers does not read them (2 in all): mtp.fc.weight, mtp.norm.weight"
    assert note in capsys.readouterr().out
    assert any(note in one for one in recorded(tmp_path / "out")["notes"])


def test_each_task_becomes_a_model_of_its_own(nowhere, tiny_model, tmp_path):
    """With `--only` one of them."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    export(Job(run=run, out=tmp_path / "out", say=print))
    assert names(tmp_path / "out") == ["proof.json", "run-hr-F16.gguf", "run-legal-F16.gguf"]
    export(Job(run=run, out=tmp_path / "one", say=print, only="hr"))
    assert names(tmp_path / "one") == ["proof.json", "run-F16.gguf"]


CANNOT = ("a GGUF file cannot hold it", "serve it with transformers and PEFT")


@pytest.mark.parametrize(
    ("update", "only", "why", "said"),
    [("prefix", "", *CANNOT), ("adapter", "", *CANNOT), ("lora", "hr", "no such result", "legal")],
)
def test_what_adds_layers_and_what_is_not_there_is_refused(
    update, only, why, said, nowhere, tiny_model, tmp_path
):
    """With what can be done, or those that are there, before anything is written."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1}, update=update)
    with pytest.raises(InputError, match=why) as error:
        export(Job(run=run, out=tmp_path / "out", say=print, only=only or None))
    assert said in error.value.text()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_anything_is_computed(run, nowhere, tmp_path, monkeypatch):
    """By the number of weights."""
    monkeypatch.setattr(exporting, "free_bytes", lambda path: 1000)
    with pytest.raises(MachineNotReady, match=r"needs about .* MiB, and 0\.0 MiB are free"):
        export(Job(run=run, out=tmp_path / "out", say=print))
    assert not (tmp_path / "out").exists()


def test_a_stopped_export_leaves_nothing(run, nowhere, tmp_path, monkeypatch):
    """Neither the file nor a half of it."""
    monkeypatch.setattr("trainers.tools.gguf.model.numbers", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(Job(run=run, out=tmp_path / "out", say=print))
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("kind", "fault", "why", "way_out"),
    [
        ("Q4KM", InputError, "unknown type of GGUF file 'Q4KM'", "did you mean 'Q4_K_M'?"),
        ("Q4_K_M", MachineNotReady, "Q4_K_M is made by llama", "ollama create -q Q4_K_M"),
    ],
)
def test_unknown_types_and_those_that_llama_cpp_makes_are_refused(
    kind, fault, why, way_out, monkeypatch, tmp_path
):
    """With the nearest one, and the way without its program; 16 bit and Q8_0 need none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    check_kind("Q8_0")
    with pytest.raises(fault, match=why) as error:
        check_kind(kind)
    assert way_out in error.value.text()


# --------------------------------------------------------------------------- the command


@pytest.mark.light
@pytest.mark.parametrize("to", ["merged:Q8_0", "gguf:"])
def test_a_variant_that_a_form_does_not_have_is_refused(call, to):
    """Exit code 2."""
    code, _, err = call("export", "--to", to)
    assert (code, "has no variant" in err) == (2, True)


@pytest.mark.light
def test_the_type_of_file_goes_to_the_tool_and_a_killed_one_leaves_nothing(tmp_path, monkeypatch):
    """Temporary files are removed whatever became of it."""
    monkeypatch.setattr("advisor.extras.gguf.extra.device_of", lambda folder: "cpu")
    out, seen = tmp_path / "out", []

    def killed(*arguments):
        seen.append(arguments)
        (out / ".advise-tmp-merged").mkdir(parents=True)
        (out / ".advise-tmp-x.gguf").write_text("half")
        raise KeyboardInterrupt

    wanted = ExportRequest(
        source=tmp_path, out=out, only="hr", say=print, run_tool=killed, variant="Q4_K_M"
    )
    with pytest.raises(KeyboardInterrupt):
        exporters()["gguf"].export(wanted)
    assert not out.exists()
    assert seen[0][0] == "gguf.export"
    assert seen[0][-4:] == ("--kind", "Q4_K_M", "--only", "hr")
