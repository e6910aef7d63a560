"""Results of runs as GGUF files, and what a proof finds, by stubs and by llama.cpp if installed.

ADVISE_LLAMA_CPP=FOLDER python -m pytest -n0 -m long tests/trainers/test_gguf_proof.py
"""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from advisor.export.exporter import ExportRequest, exporters
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from tests.trainers.families import tiny
from tests.trainers.test_gguf_files import write
from tests.trainers.test_results import lora_run
from trainers.tools.gguf import model
from trainers.tools.gguf.export import Job, check_kind, export
from trainers.tools.gguf.model import FAMILIES
from trainers.tools.gguf.proof import (
    AGREEMENT,
    OTHERS,
    QUESTIONS,
    VARIABLE,
    Answer,
    Proof,
    Reference,
    compare,
    find_llama_server,
    prove,
    reference_of,
)

LOUDER = 6.0  # attention then decides what comes next
END = 2


def reference(places: int = 100, *, stopped: bool = True, gap: float = 0.7) -> Reference:
    """One answer of so many tokens; at each place 5 is likely, 6 less by so many nats; 2 ends it."""
    tokens = [5] * (places - 1) + [END if stopped else 5]
    logits = torch.full((places, 10), -1.0, dtype=torch.float64)
    logits[:, 6] = 3.0 - gap
    logits[range(places), tokens] = 3.0
    readings = [("hello", False, [10, 11]), ("a  b", False, [12])]
    readings += [(text, True, [1, *tokens]) for text, _, tokens in readings]
    answer = Answer(prompt=[1, 10], tokens=tokens, logits_TV=logits)
    return Reference(readings=readings, answers=[answer], ends=[END], inside=[5])


def proof(
    of: Reference,
    kind: str = "F16",
    *,
    tokens=lambda text, known: known,
    ends=END.__eq__,
    choice=lambda at, token: token,
) -> Proof:
    """The proof by a server that is as the reference but for these tokens, ends and choices."""

    def answered(path, asked):
        if path == "/tokenize":
            known = {(text, whole): tokens for text, whole, tokens in of.readings}
            known["a", False] = [7]
            text, whole = asked["content"], asked["add_special"]
            return {"tokens": tokens(text, list(known[text, whole]))}
        forced, place = asked["logit_bias"][0][0], len(asked["prompt"]) - 2
        best = choice(place, of.answers[0].tokens[place])
        return {
            "stop_type": "eos" if ends(forced) else "limit",
            "completion_probabilities": [{"id": forced, "top_logprobs": [{"id": best}]}],
        }

    needed = AGREEMENT.get(kind) or AGREEMENT.get(kind[:4], OTHERS)
    found = Proof(kind=kind, needed=needed, texts=2, prompts=1)
    compare(found, of, answered)
    return found


def test_a_server_that_agrees_everywhere_proves_the_file():
    """Every number is recorded, and a base model that never stops is proved by its end tokens."""
    assert proof(reference()).lines() == [
        "proved with llama.cpp, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  1 of 1 answers that end do so at the same token",
    ]
    endless = proof(reference(stopped=False))
    assert endless.faults == []
    assert "0 of 0 answers that end" in endless.lines()[-1]


@pytest.mark.parametrize(
    ("server", "fault"),
    [
        (
            {"tokens": lambda text, known: [99] if text == "a  b" else known},
            "the text 'a  b' has other tokens in llama.cpp, from token 0: [99] instead of [12]",
        ),
        ({"ends": lambda _: False}, "llama.cpp does not stop at token 2, which ends an answer"),
        ({"ends": lambda _: True}, "llama.cpp stops at token 5 inside an answer, where transformers"),
    ],
    ids=["other-tokens", "no-stop", "early-stop"],
)  # fmt: skip
def test_other_tokens_a_missing_stop_and_one_inside_an_answer_are_faults(server, fault):
    """Both readings of a text are named, since that is how a tokenizer is mended."""
    found = proof(reference(), **server)
    assert found.faults[0].startswith(fault)
    assert found.lines()[0].startswith(f"not the model: {fault[:8]}")


@pytest.mark.parametrize(
    ("count", "gap", "kind", "fault"),
    [
        (2, 0.01, "F16", ""),
        (2, 0.2, "F16", "where transformers is sure: 0.2 apart"),
        (5, 0.01, "BF16", ""),
        (6, 0.01, "BF16", "only 94.0% of 100 tokens are the same; BF16 needs 95%"),
        (15, 0.2, "Q8_0", ""),
        (16, 0.2, "Q8_0", "Q8_0 needs 85%"),
        (31, 0.2, "Q4_K_M", "Q4_K_M needs 70%"),
        (41, 0.2, "Q2_K", "Q2_K needs 60%"),
    ],
)
def test_few_other_tokens_are_allowed_by_type(count, gap, kind, fault):
    """In 16 bit near ties alone, and five of a hundred; more in smaller types."""
    found = proof(reference(gap=gap), kind, choice=lambda at, token: 6 if at < count else token)
    assert (found.same, found.ties) == (100 - count, pytest.approx([gap] * count))
    assert any(fault in one for one in found.faults) if fault else found.faults == []


def program(folder: Path, does: str = "", name: str = "llama-server") -> Path:
    """A program of llama.cpp in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_llama_server_is_found_where_it_is_named_and_on_the_path(tmp_path, monkeypatch):
    """A machine without it has none, and no error; a wrong name is no reason to take another."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_llama_server() is None
    on_path, named = program(tmp_path / "bin"), program(tmp_path / "build" / "bin")
    assert find_llama_server() == on_path
    for place in (named, tmp_path / "build"):
        monkeypatch.setenv(VARIABLE, str(place))
        assert find_llama_server() == named
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(MachineNotReady, match="there is no llama-server there"):
        find_llama_server()


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
@pytest.mark.parametrize(
    ("does", "fault"),
    [
        ("echo unknown model architecture; exit 3", "exit 3.*unknown model architecture"),
        ("kill -11 $$", "exit -11"),
        ("exec sleep 60", r"did not answer in 0\.5 s"),
        ("exec /no/such/program", "exit 127"),
    ],
)
def test_a_server_that_crashes_or_hangs_is_a_fault_of_the_proof(tmp_path, monkeypatch, does, fault):
    """Not the end of the export: the file stays, under the name that says so."""
    monkeypatch.setattr("trainers.tools.gguf.proof.LIMIT_S", 0.5)
    found = prove(program(tmp_path, does), tmp_path / "x.gguf", reference(), "F16")
    assert re.search(fault, found.faults[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr("trainers.tools.gguf.export.find_llama_server", lambda: None)


@pytest.fixture
def engine(monkeypatch):
    """A stub of llama-server that finds these faults and computes what transformers computes."""
    stub = SimpleNamespace(faults=[], kinds=[])

    def prove(program, path, of, kind):
        assert gguf.GGUFReader(path).tensors
        stub.kinds.append(kind)
        known = {"texts": 1, "prompts": len(of.answers), "faults": stub.faults}
        return Proof(kind=kind, needed=0.95, **known)

    monkeypatch.setattr("trainers.tools.gguf.export.prove", prove)
    monkeypatch.setattr(
        "trainers.tools.gguf.export.find_llama_server", lambda: Path("llama-server")
    )
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
    """The run says what to install, and writes the file again to compare it once it is there."""
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


@pytest.mark.parametrize(
    ("program", "proved"), [("nowhere", 0), pytest.param("llama_cpp", 2, marks=pytest.mark.long)]
)
def test_each_task_becomes_a_model_of_its_own(
    program, proved, tiny_model, tmp_path, request, capsys
):
    """Each, or one by `--only`, is merged into their base, and computed as PEFT computes it."""
    request.getfixturevalue(program)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    export(Job(run=run, out=tmp_path / "out", say=print))
    assert names(tmp_path / "out") == ["proof.json", "run-hr-F16.gguf", "run-legal-F16.gguf"]
    assert capsys.readouterr().out.count("proved with llama.cpp") == proved
    export(Job(run=run, out=tmp_path / "one", say=print, only="hr"))
    assert names(tmp_path / "one") == ["proof.json", "run-F16.gguf"]


CANNOT = r"a GGUF file cannot hold it[\s\S]*serve it with transformers and PEFT"


@pytest.mark.parametrize(
    ("update", "only", "why"),
    [
        ("prefix", None, CANNOT),
        ("adapter", None, CANNOT),
        ("lora", "hr", r"no such result[\s\S]*legal"),
    ],
    ids=["prefix", "adapter", "not-there"],
)
def test_what_adds_layers_and_what_is_not_there_is_refused(
    update, only, why, nowhere, tiny_model, tmp_path
):
    """With what can be done, or those that are there, before anything is written."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1}, update=update)
    with pytest.raises(InputError, match=why):
        export(Job(run=run, out=tmp_path / "out", say=print, only=only))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_and_a_stop_leave_nothing(run, nowhere, tmp_path, monkeypatch):
    """The number of weights says beforehand that a disk is too full; a stop leaves no half file."""
    job, inside = Job(run=run, out=tmp_path / "out", say=print), "trainers.tools.gguf."
    with monkeypatch.context() as patch:
        patch.setattr(f"{inside}export.free_bytes", lambda path: 1000)
        with pytest.raises(MachineNotReady, match=r"needs about .* MiB, and 0\.0 MiB are free"):
            export(job)
    assert not job.out.exists()
    monkeypatch.setattr(f"{inside}model.numbers", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(job)
    assert names(job.out) == []


@pytest.mark.parametrize(
    ("kind", "fault", "why"),
    [
        ("Q4KM", InputError, r"unknown type of GGUF file 'Q4KM'[\s\S]*did you mean 'Q4_K_M'\?"),
        ("Q4_K_M", MachineNotReady, r"Q4_K_M is made by llama[\s\S]*ollama create -q Q4_K_M"),
    ],
)
def test_unknown_types_and_those_that_llama_cpp_makes_are_refused(
    kind, fault, why, monkeypatch, tmp_path
):
    """With the nearest one, and the way without its program; 16 bit and Q8_0 need none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    check_kind("Q8_0")
    with pytest.raises(fault, match=why):
        check_kind(kind)


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


@pytest.fixture(scope="module")
def llama_cpp():
    found = find_llama_server()
    if found is None:
        pytest.skip("llama-server is not installed: llama.cpp on PATH, or ADVISE_LLAMA_CPP")
    return found


def faults_of(llama_cpp, folder: Path, family: str, kind: str = "", **keys) -> list[str]:
    """What the proof finds of a file of such a model."""
    dtype = torch.bfloat16 if kind else torch.float16
    made = tiny(family, folder / "model", dtype, louder=LOUDER, **keys)
    loaded, tokenizer, tokens, kind, _ = write(made, folder / "out.gguf", kind=kind)
    reference = reference_of(loaded.float(), tokenizer, tokens, QUESTIONS[:2])
    return prove(llama_cpp, folder / "out.gguf", reference, kind).faults


def rope(kind, factor, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": factor, **more}}


LLAMA3 = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
CASES = [
    *((family, {}) for family in sorted(FAMILIES)),
    ("llama", {"kind": "Q8_0"}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", rope("llama3", 8.0, **LLAMA3)),
    ("llama", rope("linear", 4.0)),
    ("qwen2", rope("yarn", 4.0, original_max_position_embeddings=64)),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "keys"), CASES, ids=[f"{name}-{'-'.join(keys)}" for name, keys in CASES]
)
def test_llama_cpp_computes_what_transformers_computes(family, keys, llama_cpp, tmp_path):
    """Tokens, answers and ends agree; in eight bits at as many places as the limit asks."""
    assert faults_of(llama_cpp, tmp_path, family, **keys) == []


def exchanged(name: str) -> str:
    """The name of a tensor, with two matrices of a block exchanged."""
    other = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
    return ".".join(other.get(part, part) for part in name.split("."))


# A name in model.py -> what stands there instead.
MISTAKES = {
    "NEIGHBOURS": lambda plain: tuple({*FAMILIES} - {*plain}),
    "numbers": lambda plain: lambda one, heads: plain(one, heads) + (one.dim() == 1),
    "tensors": lambda plain: (
        lambda loaded: {exchanged(name): tensor for name, tensor in plain(loaded).items()}
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_with_a_mistake_is_not_proved(family, mistake, llama_cpp, tmp_path, monkeypatch):
    """Rows in the wrong order, other norms, two matrices exchanged: each shows."""
    monkeypatch.setattr(model, mistake, MISTAKES[mistake](getattr(model, mistake)))
    faults = faults_of(llama_cpp, tmp_path, family)
    assert any("is sure" in fault or "are the same" in fault for fault in faults)


@pytest.mark.long
def test_a_damaged_file_is_a_fault_of_the_proof(llama_cpp, tmp_path):
    """What llama.cpp says of it is passed on, and nothing crashes."""
    folder, path = tiny("llama", tmp_path / "model", torch.bfloat16), tmp_path / "out.gguf"
    loaded, tokenizer, tokens, *_ = write(folder, path)
    path.write_bytes(path.read_bytes()[:-1000])
    proof = prove(llama_cpp, path, reference_of(loaded, tokenizer, tokens), "BF16")
    assert "gguf" in proof.faults[0].lower() or "load" in proof.faults[0]


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_a_smaller_file_of_llama_cpps_program_is_proved(
    llama_cpp, tiny_model, tmp_path, monkeypatch
):
    """What llama-quantize writes, here a copy, is compared like our own file."""
    there = program(tmp_path / "bin", 'cp "$1" "$2"', "llama-quantize").parent
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1})
    (one,) = export(Job(run=run, out=tmp_path / "out", kind="Q4_K_M", say=print))
    assert names(one.parent) == ["proof.json", "run-Q4_K_M.gguf"]
