"""What a proof of a GGUF file finds: an engine that answers as transformers did, and engines that
differ from it in one thing each.
"""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, MachineNotReady
from trainers.tools.gguf import engine as engine_module
from trainers.tools.gguf import find, levels
from trainers.tools.gguf.engine import EngineFailed, Place, Process
from trainers.tools.gguf.find import LlamaCpp, find_llama_cpp
from trainers.tools.gguf.prove import prove
from trainers.tools.gguf.reference import Answer, Reference

pytestmark = pytest.mark.light

P = tuple(math.log(share) for share in (0.6, 0.3))


def reference(places: int = 100, *, stopped: bool = True) -> Reference:
    """One answer of so many tokens; at each place 5 is likely, 6 half as much; 2 ends it."""
    tokens = (5,) * (places - 1) + (2 if stopped else 5,)
    return Reference(
        texts=("hello", "a  b"),
        parts=((10, 11), (12,)),
        wholes=((1, 10, 11), (1, 12)),
        left_out=0,
        answers=(
            Answer(
                prompt=(1, 10),
                tokens=tokens,
                stopped=stopped,
                watched=tuple((token, 6) for token in tokens),
                log_probs=(P,) * places,
            ),
        ),
        ends=(2,),
        dtype="float32",
    )


class Same:
    """An engine that computes what the reference holds."""

    what = "llama.cpp of the test"

    def __init__(self, of: Reference) -> None:
        self.of = of
        self.context = 0

    def load(self, path, *, context, adapter=None):
        self.context = context

    def tokens(self, texts, *, whole):
        known = dict(zip(self.of.texts, self.of.wholes if whole else self.of.parts, strict=True))
        return [list(known[text]) for text in texts]

    def ends(self, tokens):
        return [token == 2 for token in tokens]

    def place(self, at, answer):
        return Place(best=answer[at], logprob=P[0], watched=P)

    def score(self, prompt, answer, watched):
        return [self.place(at, answer) for at in range(len(answer))]


def proof(engine: Same, kind: str = "F16"):
    return prove(engine, Path("x.gguf"), engine.of, kind=kind)


def test_an_engine_that_agrees_everywhere_proves_the_file():
    """Every number of it is said, and recorded."""
    engine = Same(reference())
    found = proof(engine)
    assert found.holds
    assert found.lines() == [
        "proved with llama.cpp of the test, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  probabilities are 0 nats apart in the mean; allowed: 0.01",
        "  1 of 1 answers that end do so at the same token",
    ]
    assert engine.context >= 102
    assert json.loads(json.dumps(found.record()))["agreement"] == 1.0


def test_other_tokens_of_a_text_are_named():
    """With the place and both readings: that is how a tokenizer is mended."""

    class Other(Same):
        def tokens(self, texts, *, whole):
            found = super().tokens(texts, whole=whole)
            pairs = zip(texts, found, strict=True)
            return [[*row[:-1], 99] if text == "a  b" else row for text, row in pairs]

    found = proof(Other(reference()))
    assert not found.holds
    assert found.faults[0] == (
        "the text 'a  b' has other tokens in llama.cpp, from token 0: [99] instead of [12]"
    )
    assert found.lines()[0].startswith("not proved: the text")


def test_a_missing_stop_is_a_fault():
    """An answer that never ends is what people report most."""

    class Endless(Same):
        def ends(self, tokens):
            return [False for _ in tokens]

    assert "llama.cpp does not stop at token 2" in proof(Endless(reference())).faults[0]


def test_a_stop_inside_an_answer_is_a_fault():
    """The answer would be cut."""

    class Early(Same):
        def ends(self, tokens):
            return [True for _ in tokens]

    assert "stops at token 5 inside an answer" in proof(Early(reference())).faults[0]


def other_at(count: int, gap: float):
    """An engine that takes token 6 at so many places, where transformers prefers its own by so
    much.
    """
    of = reference()
    answer = of.answers[0]
    close = (math.log(0.4), math.log(0.4) - gap)
    of = replace(
        of,
        answers=(
            replace(
                answer,
                log_probs=tuple(close if at < count else P for at in range(len(answer.tokens))),
            ),
        ),
    )

    class Takes(Same):
        def place(self, at, row):
            if at < count:
                return Place(best=6, logprob=close[0], watched=close)
            return super().place(at, row)

    return Takes(of)


@pytest.mark.parametrize(
    ("count", "gap", "kind", "fault"),
    [
        (2, 0.01, "F16", ""),
        (2, 0.2, "F16", "where transformers is sure: 0.2 apart"),
        (5, 0.01, "BF16", ""),
        (6, 0.01, "BF16", "only 94.0% of 100 tokens are the same; BF16 needs 95%"),
        (15, 0.2, "Q8_0", ""),
        (16, 0.2, "Q8_0", "Q8_0 needs 85%"),
        (30, 0.2, "Q4_K_M", ""),
        (31, 0.2, "Q4_K_M", "Q4_K_M needs 70%"),
        (41, 0.2, "Q2_K", "Q2_K needs 60%"),
    ],
)
def test_few_other_tokens_are_allowed_by_type(count, gap, kind, fault):
    """In 16 bit near ties alone, and five of a hundred; more in smaller types."""
    found = proof(other_at(count, gap), kind)
    assert (found.same, len(found.ties)) == (100 - count, count)
    if fault:
        assert any(fault in one for one in found.faults)
    else:
        assert found.faults == []


def test_other_probabilities_are_a_fault_though_the_choice_is_the_same():
    """A mistake in a model may leave the most likely token."""

    class Flat(Same):
        def place(self, at, answer):
            return Place(best=answer[at], logprob=P[0], watched=(math.log(0.35), math.log(0.33)))

    assert "nats from those of transformers" in proof(Flat(reference())).faults[0]


def test_numbers_that_are_none_are_a_fault():
    """NaN is as good as nothing."""

    class Broken(Same):
        def place(self, at, answer):
            return Place(best=answer[at], logprob=math.nan, watched=(math.nan, math.nan))

    assert any("NaN" in fault for fault in proof(Broken(reference())).faults)


def test_a_failure_of_llama_cpp_is_a_fault():
    """Not the end of the export: the file stays, under the name that says so."""

    class Refuses(Same):
        def load(self, path, *, context, adapter=None):
            raise EngineFailed("unknown model architecture")

    found = proof(Refuses(reference()))
    assert (found.holds, found.faults) == (False, ["unknown model architecture"])


def test_a_model_that_ends_no_answer_is_proved_by_its_end_tokens():
    """A base model may write on for ever, in both."""
    found = proof(Same(reference(stopped=False)))
    assert found.holds
    assert "no answer ended in transformers either" in found.lines()[-1]


# --------------------------------------------------------------------------- llama.cpp


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without llama.cpp, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(find.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(find, "find_spec", lambda name: None)
    monkeypatch.setattr(find.ctypes.util, "find_library", lambda name: None)
    return tmp_path


def node_package(folder: Path, name: str = "") -> Path:
    import platform

    processor = {"x86_64": "x64", "aarch64": "arm64", "AMD64": "x64"}.get(
        platform.machine(), platform.machine()
    )
    system = {"Darwin": "mac", "Windows": "win"}.get(platform.system(), "linux")
    build = f"{system}-{processor}{name}"
    package = folder / "node_modules" / "@node-llama-cpp" / build
    library = package / "bins" / build / "libllama.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"x")
    (library.parent / "_nlcBuildMetadata.json").write_text(
        json.dumps({"buildOptions": {"llamaCpp": {"release": "v9"}}})
    )
    (package / "package.json").write_text(json.dumps({"version": "3.0.0"}))
    return library


def test_a_machine_without_llama_cpp_has_none(bare):
    """None, and no error: the file is then called unproved."""
    assert find_llama_cpp() is None


def test_the_package_of_npm_is_found_from_a_folder_below(bare, monkeypatch):
    """With its version; the build without a GPU is taken."""
    node_package(bare, "-cuda")
    library = node_package(bare)
    (bare / "work").mkdir()
    monkeypatch.chdir(bare / "work")
    found = find_llama_cpp()
    assert found == LlamaCpp(library=library.resolve(), what="node-llama-cpp 3.0.0 (llama.cpp v9)")


def test_of_a_named_folder_the_build_for_this_machine_is_taken(bare, monkeypatch):
    """npm may have installed those for other processors beside it."""
    other = bare / "node_modules" / "@node-llama-cpp" / "a-first" / "bins" / "a-first"
    other.mkdir(parents=True)
    (other / "libllama.so").write_bytes(b"x")
    library = node_package(bare)
    monkeypatch.setenv(find.VARIABLE, str(bare / "node_modules"))
    found = find_llama_cpp()
    assert found is not None
    assert found.library == library.resolve()


def test_a_named_place_without_the_library_is_said(bare, monkeypatch):
    """A wrong path is no reason to take another one."""
    node_package(bare)
    monkeypatch.setenv(find.VARIABLE, str(bare / "elsewhere"))
    with pytest.raises(MachineNotReady, match="there is no libllama there") as error:
        find_llama_cpp()
    assert "npm install node-llama-cpp" in error.value.text()


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
def test_a_library_beside_a_program_on_the_path_is_found(bare):
    """As a package manager installs llama.cpp."""
    for folder in ("bin", "lib"):
        (bare / folder).mkdir()
    (bare / "bin" / "llama-cli").write_text("#!/bin/sh\n")
    (bare / "bin" / "llama-cli").chmod(0o755)
    (bare / "lib" / "libllama.so").write_bytes(b"x")
    found = find_llama_cpp()
    assert found is not None
    assert found.library == bare / "lib" / "libllama.so"


def test_a_file_that_is_no_library_is_an_answer_of_the_engine(tmp_path):
    """The child process says so; nothing crashes here."""
    (tmp_path / "libllama.so").write_bytes(b"no library")
    with (
        Process(LlamaCpp(library=tmp_path / "libllama.so", what="x")) as engine,
        pytest.raises(EngineFailed, match=r"no llama\.cpp library that can be used"),
    ):
        engine.ends([1])


def test_a_crash_of_the_library_is_an_answer_too(tmp_path, monkeypatch):
    """A native library that kills its process does not end the export."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread line\nkill -11 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with (
        Process(LlamaCpp(library=tmp_path / "libllama.so", what="x")) as engine,
        pytest.raises(EngineFailed, match=r"llama\.cpp crashed .* asked to ends"),
    ):
        engine.ends([1])


# --------------------------------------------------------------------------- types


def test_an_unknown_type_names_those_that_are_known():
    """With the nearest one."""
    with pytest.raises(InputError, match="unknown type of GGUF file 'Q4KM'") as error:
        levels.check_level("Q4KM", None)
    assert "did you mean 'Q4_K_M'?" in error.value.text()


def test_types_that_llama_cpp_makes_need_it(bare):
    """16 bit and Q8_0 do not."""
    levels.check_level("Q8_0", None)
    with pytest.raises(MachineNotReady, match=r"Q4_K_M is made by llama\.cpp") as error:
        levels.check_level("Q4_K_M", None)
    assert "npm install node-llama-cpp" in error.value.text()


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
@pytest.mark.parametrize(
    ("does", "match"),
    [
        ("exec sleep 60", "did not answer in 0.5 s when it was asked to ends"),
        ("read line; exec sleep 60", "did not answer in 0.5 s"),
        ("read line; exec >&-; exec sleep 60", "crashed"),
        ("read line; echo garbage; exec sleep 60", "no answer that can be read"),
        ("read line; echo '[1]'; exec sleep 60", "no answer that can be read"),
        ("trap '' TERM INT; read line; echo '{\"error\": 5}'; sleep 60", "5"),
    ],
)
def test_an_engine_that_hangs_or_talks_nonsense_is_ended(tmp_path, monkeypatch, does, match):
    """Its process is gone when the export goes on."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(engine_module, "LIMIT_S", 0.5)
    with (
        pytest.raises(EngineFailed, match=match),
        Process(LlamaCpp(library=tmp_path / "libllama.so", what="x")) as engine,
    ):
        engine.ends([1])
    assert engine.child.returncode is not None


def test_an_engine_that_does_not_leave_is_ended(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread line\necho '{\"ok\": [true]}'\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(engine_module, "LEAVING_S", 0.2)
    with Process(LlamaCpp(library=tmp_path / "libllama.so", what="x")) as engine:
        assert engine.ends([1]) == [True]
    assert engine.child.returncode == -9


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions there")
def test_a_library_that_others_could_have_put_there_is_not_loaded(bare):
    """A folder of temporary files may hold a node_modules of anybody."""
    library = node_package(bare)
    assert find_llama_cpp() is not None
    for path in (library, library.parent, bare / "node_modules"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        assert find_llama_cpp() is None
        path.chmod(mode)
    assert find_llama_cpp() is not None
