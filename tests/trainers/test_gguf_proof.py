"""What a proof of a GGUF file finds: a llama-server that answers as transformers did, and others
that differ from it in one thing each; and llama.cpp itself, where it is installed: each family
computes there what transformers computes, and a file with a mistake is noticed.

    ADVISE_LLAMA_CPP=FOLDER python -m pytest -n0 -m long tests/trainers/test_gguf_proof.py
"""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")

import torch

from advisor.ground.errors import MachineNotReady
from tests.trainers.test_gguf_files import write
from tests.trainers.test_results import lora_run
from tests.trainers.tiny_families import tiny
from trainers.tools.gguf import model
from trainers.tools.gguf import proof as proving
from trainers.tools.gguf.export import Job, export
from trainers.tools.gguf.model import FAMILIES
from trainers.tools.gguf.proof import (
    QUESTIONS,
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
    """Of a server that computes what the reference holds but for what is said: the tokens of a
    text, whether a token ends an answer, and what comes at a place.
    """

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

    needed = proving.AGREEMENT.get(kind) or proving.AGREEMENT.get(kind[:4], proving.OTHERS)
    found = Proof(kind=kind, needed=needed, texts=2, prompts=1)
    compare(found, of, answered)
    return found


def test_a_server_that_agrees_everywhere_proves_the_file():
    """Every number of it is said, and recorded."""
    assert proof(reference()).lines() == [
        "proved with llama.cpp, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  1 of 1 answers that end do so at the same token",
    ]


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
    """Both readings of a text are named: that is how a tokenizer is mended. An answer that never
    ends is what people report most; the other would be cut.
    """
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


def test_a_model_that_ends_no_answer_is_proved_by_its_end_tokens():
    """A base model may write on for ever, in both."""
    found = proof(reference(stopped=False))
    assert found.faults == []
    assert "0 of 0 answers that end" in found.lines()[-1]


# --------------------------------------------------------------------------- a program


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
    monkeypatch.delenv(proving.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_llama_server() is None
    on_path, named = program(tmp_path / "bin"), program(tmp_path / "build" / "bin")
    assert find_llama_server() == on_path
    for place in (named, tmp_path / "build"):
        monkeypatch.setenv(proving.VARIABLE, str(place))
        assert find_llama_server() == named
    monkeypatch.setenv(proving.VARIABLE, str(tmp_path / "elsewhere"))
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
    monkeypatch.setattr(proving, "LIMIT_S", 0.5)
    found = prove(program(tmp_path, does), tmp_path / "x.gguf", reference(), "F16")
    assert re.search(fault, found.faults[0])


# --------------------------------------------------------------------------- llama.cpp itself


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
    """The same tokens, the same answers, the same ends; in eight bits at as many places as the
    limit asks for.
    """
    assert faults_of(llama_cpp, tmp_path, family, **keys) == []


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


@pytest.mark.long
@pytest.mark.parametrize("mistake", [wrong_pairs, wrong_norms, wrong_names])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_with_a_mistake_is_not_proved(family, mistake, llama_cpp, tmp_path, monkeypatch):
    """Rows in the wrong order, other norms, two matrices exchanged: each shows."""
    mistake(monkeypatch)
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
def test_each_task_is_a_model_that_is_proved(llama_cpp, tiny_model, tmp_path, capsys):
    """Each merged into the base that they share; llama.cpp computes them as PEFT does."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    export(Job(run=run, out=tmp_path / "out", say=print))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["proof.json", "run-hr-F16.gguf", "run-legal-F16.gguf"]
    assert capsys.readouterr().out.count("proved with llama.cpp") == 2


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_a_smaller_file_of_llama_cpps_program_is_proved(
    llama_cpp, tiny_model, tmp_path, monkeypatch
):
    """What llama-quantize writes is compared like our own; nothing else is left. The one here
    copies.
    """
    there = program(tmp_path / "bin", 'cp "$1" "$2"', "llama-quantize").parent
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1})
    (one,) = export(Job(run=run, out=tmp_path / "out", kind="Q4_K_M", say=print))
    assert sorted(path.name for path in one.parent.iterdir()) == ["proof.json", "run-Q4_K_M.gguf"]
