"""GGUF files in llama.cpp itself, where it is installed: each family computes there what
transformers computes, and a file with a mistake is noticed.

    ADVISE_LLAMA_CPP=FOLDER python -m pytest -n0 -m long tests/trainers/test_gguf_proof.py
"""

import os
import stat
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")

import torch

from tests.trainers.test_gguf_files import write
from tests.trainers.test_results import lora_run
from tests.trainers.tiny_families import tiny
from trainers.tools.gguf import model
from trainers.tools.gguf.export import Job, export
from trainers.tools.gguf.model import FAMILIES
from trainers.tools.gguf.proof import QUESTIONS, find_llama_server, prove, reference_of

pytestmark = pytest.mark.long
LOUDER = 6.0  # attention then decides what comes next


@pytest.fixture(scope="module")
def llama_cpp():
    found = find_llama_server()
    if found is None:
        pytest.skip("llama-server is not installed: llama.cpp on PATH, or ADVISE_LLAMA_CPP")
    return found


def proof_of(llama_cpp, folder: Path, path: Path, kind=""):
    loaded, tokenizer, tokens, kind, _ = write(folder, path, kind=kind)
    reference = reference_of(loaded.float(), tokenizer, tokens, QUESTIONS[:2])
    return prove(llama_cpp, path, reference, kind)


def rope(kind, factor, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": factor, **more}}


LLAMA3 = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
CASES = [(family, {}) for family in sorted(FAMILIES)]
CASES += [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", rope("llama3", 8.0, **LLAMA3)),
    ("llama", rope("linear", 4.0)),
    ("qwen2", rope("yarn", 4.0, original_max_position_embeddings=64)),
]


@pytest.mark.parametrize(
    ("family", "keys"), CASES, ids=[f"{name}-{'-'.join(keys)}" for name, keys in CASES]
)
def test_llama_cpp_computes_what_transformers_computes(family, keys, llama_cpp, tmp_path):
    """The same tokens, the same answers, the same ends."""
    folder = tiny(family, tmp_path / "model", torch.float16, louder=LOUDER, **keys)
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf")
    assert proof.faults == []


def wrong_pairs(monkeypatch):
    monkeypatch.setattr(model, "NEIGHBOURS", tuple({*FAMILIES} - {*model.NEIGHBOURS}))


def wrong_norms(monkeypatch):
    plain = model.numbers
    monkeypatch.setattr(model, "numbers", lambda one, heads: plain(one, heads) + (one.dim() == 1))


def wrong_names(monkeypatch):
    plain, exchanged = model.tensors, {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}

    def other(loaded):
        parts = ((name.split("."), tensor) for name, tensor in plain(loaded).items())
        return {
            ".".join(exchanged.get(part, part) for part in name): tensor for name, tensor in parts
        }

    monkeypatch.setattr(model, "tensors", other)


@pytest.mark.parametrize("mistake", [wrong_pairs, wrong_norms, wrong_names])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_with_a_mistake_is_not_proved(family, mistake, llama_cpp, tmp_path, monkeypatch):
    """Rows in the wrong order, other norms, two matrices exchanged: each shows."""
    folder = tiny(family, tmp_path / "model", torch.float16, louder=LOUDER)
    mistake(monkeypatch)
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf")
    assert any("is sure" in fault or "are the same" in fault for fault in proof.faults)


def test_eight_bits_agree_at_most_places(llama_cpp, tmp_path):
    """As many as the limit asks for."""
    folder = tiny("llama", tmp_path / "model", torch.bfloat16, louder=LOUDER)
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf", kind="Q8_0")
    assert proof.faults == []


def test_a_damaged_file_is_a_fault_of_the_proof(llama_cpp, tmp_path):
    """What llama.cpp says of it is passed on, and nothing crashes."""
    folder, path = tiny("llama", tmp_path / "model", torch.bfloat16), tmp_path / "out.gguf"
    loaded, tokenizer, tokens, *_ = write(folder, path)
    path.write_bytes(path.read_bytes()[:-1000])
    proof = prove(llama_cpp, path, reference_of(loaded, tokenizer, tokens), "BF16")
    assert "gguf" in proof.faults[0].lower() or "load" in proof.faults[0]


def test_each_task_is_a_model_that_is_proved(llama_cpp, tiny_model, tmp_path):
    """Each merged into the base that they share; llama.cpp computes them as PEFT does."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    said: list[str] = []
    export(Job(run=run, out=tmp_path / "out", say=said.append))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["proof.json", "run-hr-F16.gguf", "run-legal-F16.gguf"]
    assert sum("proved with llama.cpp" in line for line in said) == 2


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_a_smaller_file_of_llama_cpps_program_is_proved(
    llama_cpp, tiny_model, tmp_path, monkeypatch
):
    """What llama-quantize writes is compared like our own; nothing else is left. The one here
    copies.
    """
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncp "$1" "$2"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1})
    (one,) = export(Job(run=run, out=tmp_path / "out", kind="Q4_K_M", say=print))
    assert sorted(path.name for path in one.parent.iterdir()) == ["proof.json", "run-Q4_K_M.gguf"]
