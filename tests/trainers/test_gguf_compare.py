"""What a proof of a GGUF file finds: a llama-server that answers as transformers did, and others
that differ from it in one thing each.
"""

import os
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from advisor.ground.errors import MachineNotReady
from trainers.tools.gguf import proof as proving
from trainers.tools.gguf.proof import Answer, Proof, Reference, compare, find_llama_server, prove

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


class Server:
    """Computes what the reference holds but for what is said: the tokens of a text, whether a token
    ends an answer, and what comes at a place.
    """

    def __init__(self, of: Reference, *, tokens=None, ends=END.__eq__, choice=None) -> None:
        self.of, self.ends = of, ends
        self.tokens = tokens or (lambda text, known: known)
        self.choice = choice or (lambda at, token: token)

    def __call__(self, path, asked):
        if path == "/tokenize":
            known = {(text, whole): tokens for text, whole, tokens in self.of.readings}
            known["a", False] = [7]
            text, whole = asked["content"], asked["add_special"]
            return {"tokens": self.tokens(text, list(known[text, whole]))}
        forced, place = asked["logit_bias"][0][0], len(asked["prompt"]) - 2
        best = self.choice(place, self.of.answers[0].tokens[place])
        return {
            "stop_type": "eos" if self.ends(forced) else "limit",
            "completion_probabilities": [{"id": forced, "top_logprobs": [{"id": best}]}],
        }


def proof(server: Server, kind: str = "F16") -> Proof:
    needed = proving.AGREEMENT.get(kind) or proving.AGREEMENT.get(kind[:4], proving.OTHERS)
    found = Proof(kind=kind, needed=needed, texts=2, prompts=1)
    compare(found, server.of, server)
    return found


def test_a_server_that_agrees_everywhere_proves_the_file():
    """Every number of it is said, and recorded."""
    assert proof(Server(reference())).lines() == [
        "proved with llama.cpp, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  1 of 1 answers that end do so at the same token",
    ]


def test_other_tokens_of_a_text_are_named():
    """With the place and both readings: that is how a tokenizer is mended."""

    other = {"a  b": [99]}
    found = proof(Server(reference(), tokens=lambda text, known: other.get(text, known)))
    assert found.faults[0] == (
        "the text 'a  b' has other tokens in llama.cpp, from token 0: [99] instead of [12]"
    )
    assert found.lines()[0].startswith("not the model: the text")


def test_a_missing_stop_and_one_inside_an_answer_are_faults():
    """An answer that never ends is what people report most; the other would be cut."""

    endless, early = (proof(Server(reference(), ends=lambda _, it=it: it)) for it in (False, True))
    assert "llama.cpp does not stop at token 2" in endless.faults[0]
    assert "stops at token 5 inside an answer" in early.faults[0]


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

    server = Server(reference(gap=gap), choice=lambda at, token: 6 if at < count else token)
    found = proof(server, kind)
    assert (found.same, found.ties) == (100 - count, pytest.approx([gap] * count))
    assert any(fault in one for one in found.faults) if fault else found.faults == []


def test_a_model_that_ends_no_answer_is_proved_by_its_end_tokens():
    """A base model may write on for ever, in both."""
    found = proof(Server(reference(stopped=False)))
    assert found.faults == []
    assert "0 of 0 answers that end" in found.lines()[-1]


# --------------------------------------------------------------------------- llama.cpp


def program(folder: Path, does: str = "") -> Path:
    """A llama-server of that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-server"
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
