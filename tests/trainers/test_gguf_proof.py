"""GGUF files in llama.cpp itself, where it is installed: each family computes there what
transformers computes, and a file with a mistake is noticed.

    ADVISE_LLAMA_CPP=FOLDER python -m pytest -n0 -m long tests/trainers/test_gguf_proof.py
"""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")

import torch

from advisor.ground.gguf import gguf_families
from tests.trainers.test_results import lora_run
from tests.trainers.tiny_families import tiny
from trainers.tools.gguf import write
from trainers.tools.gguf.engine import Process
from trainers.tools.gguf.export import export
from trainers.tools.gguf.find import find_llama_cpp
from trainers.tools.gguf.prove import prove
from trainers.tools.gguf.reference import QUESTIONS, reference_of

pytestmark = pytest.mark.long
LOUDER = 6.0  # attention then decides what comes next


@pytest.fixture(scope="module")
def llama_cpp():
    found = find_llama_cpp()
    if found is None:
        pytest.skip("llama.cpp is not installed: npm install node-llama-cpp, or ADVISE_LLAMA_CPP")
    return found


def proof_of(llama_cpp, folder: Path, path: Path, kind=""):
    written = write.write_model(folder, path, kind=kind)
    reference = reference_of(folder, written.ends, QUESTIONS[:2])
    with Process(llama_cpp) as engine:
        return prove(engine, path, reference, kind=written.kind)


CASES = [(family, {}) for family in sorted(gguf_families())]
CASES += [
    ("llama", {"pieces": True}),
    ("llama", {"tie_word_embeddings": True}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
]


@pytest.mark.parametrize(
    ("family", "keys"), CASES, ids=[f"{name}-{'-'.join(keys)}" for name, keys in CASES]
)
def test_llama_cpp_computes_what_transformers_computes(family, keys, llama_cpp, tmp_path):
    """The same tokens, the same answers, the same ends; probabilities differ by rounding alone."""
    folder = tiny(family, tmp_path / "model", torch.float16, louder=LOUDER, **keys)
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf")
    assert proof.faults == []
    assert proof.divergence < 1e-3


def wrong_pairs(family):
    return replace(family, swaps_pairs=not family.swaps_pairs)


def wrong_norms(family):
    return replace(family, norm_offset=1 - family.norm_offset)


def wrong_names(family):
    swapped = {"mlp.gate_proj": "ffn_up", "mlp.up_proj": "ffn_gate"}
    return replace(family, layer={**family.layer, **swapped})


@pytest.mark.parametrize("mistake", [wrong_pairs, wrong_norms, wrong_names])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_file_with_a_mistake_is_not_proved(family, mistake, llama_cpp, tmp_path, monkeypatch):
    """Rows in the wrong order, norms without their offset, two matrices exchanged: each shows."""
    folder = tiny(family, tmp_path / "model", torch.float16, louder=LOUDER)
    monkeypatch.setattr(write, "family_of", lambda config, where: mistake(gguf_families()[family]))
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf")
    assert any("of transformers" in fault or "are the same" in fault for fault in proof.faults)


def test_eight_bits_agree_at_most_places(llama_cpp, tmp_path):
    """As many as the limit asks for."""
    folder = tiny("llama", tmp_path / "model", torch.bfloat16, louder=LOUDER)
    proof = proof_of(llama_cpp, folder, tmp_path / "out.gguf", kind="Q8_0")
    assert proof.faults == []


def test_a_damaged_file_is_a_fault_of_the_proof(llama_cpp, tmp_path):
    """What llama.cpp says of it is passed on, and nothing crashes."""
    folder = tiny("llama", tmp_path / "model", torch.bfloat16)
    path = tmp_path / "out.gguf"
    write.write_model(folder, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with Process(llama_cpp) as engine:
        proof = prove(engine, path, reference_of(folder, [2], QUESTIONS[:1]), kind="BF16")
    assert proof.faults
    assert "GGUF" in proof.faults[0] or "load" in proof.faults[0]


def test_departments_share_a_base_and_each_adapter_is_proved(llama_cpp, tiny_model, tmp_path):
    """One file for the base and one for each task; llama.cpp puts them together as PEFT does."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    said: list[str] = []
    done = export(
        run, tmp_path / "out", only=None, kind="", device=torch.device("cpu"), say=said.append
    )
    assert [(one.role, one.is_proved) for one in done] == [
        ("base", True),
        ("adapter", True),
        ("adapter", True),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "proof.json",
        "run-base-F16.gguf",
        "run-hr-adapter.gguf",
        "run-legal-adapter.gguf",
    ]
    assert any("--lora" in line for line in said)


def test_llama_cpp_makes_smaller_types(llama_cpp, tiny_model, tmp_path):
    """Q4_K_M of a merged result, made and proved by the same library; nothing else is left."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1})
    (one,) = export(
        run, tmp_path / "out", only=None, kind="Q4_K_M", device=torch.device("cpu"), say=print
    )
    assert (one.kind, one.is_proved) == ("Q4_K_M", True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "proof.json",
        "run-Q4_K_M.gguf",
    ]
