"""What a proof of a GGUF file finds: an engine that answers as transformers did, and engines that
differ from it in one thing each.
"""

import os
import sys
from pathlib import Path

import pytest

from advisor.ground.errors import MachineNotReady
from trainers.tools.gguf import llama_cpp
from trainers.tools.gguf.llama_cpp import EngineFailed, ask, find_llama_cpp
from trainers.tools.gguf.proof import Answer, Reference, prove

pytestmark = pytest.mark.light


def reference(places: int = 100, *, stopped: bool = True, gap: float = 0.7) -> Reference:
    """One answer of so many tokens; at each place 5 is likely, 6 less by so many nats; 2 ends it."""
    tokens = [5] * (places - 1) + [2 if stopped else 5]
    return Reference(
        readings=[
            ("hello", False, [10, 11]),
            ("a  b", False, [12]),
            ("hello", True, [1, 10, 11]),
            ("a  b", True, [1, 12]),
        ],
        answers=[
            Answer(
                prompt=[1, 10],
                tokens=tokens,
                stopped=stopped,
                behind=[{token: 0.0, 6: gap} for token in tokens],
            )
        ],
        ends=[2],
    )


class Same:
    """An engine that computes what the reference holds."""

    def __init__(self, of: Reference) -> None:
        self.of = of
        self.context = 0

    def __call__(self, request):
        self.context = request["context"]
        return {
            "tokens": [self.tokens(*one) for one in self.of.readings],
            "ends": [token for token in request["ends"] if self.ends(token)],
            "choices": [
                [self.choice(at, token) for at, token in enumerate(tokens)]
                for _, tokens in request["answers"]
            ],
        }

    def tokens(self, text, whole, known):
        return known

    def ends(self, token):
        return token == 2

    def choice(self, at, token):
        return token


def proof(engine: Same, kind: str = "F16"):
    return prove(engine, Path("x.gguf"), engine.of, kind=kind)


def test_an_engine_that_agrees_everywhere_proves_the_file():
    """Every number of it is said, and recorded."""
    engine = Same(reference())
    found = proof(engine)
    assert found.lines() == [
        "proved with llama.cpp, against transformers:",
        "  2 texts have the same tokens",
        "  100 of 100 tokens of 1 greedy answers are the same; needed: 95%",
        "  1 of 1 answers that end do so at the same token",
    ]
    assert engine.context >= 102


def test_other_tokens_of_a_text_are_named():
    """With the place and both readings: that is how a tokenizer is mended."""

    class Other(Same):
        def tokens(self, text, whole, known):
            return [*known[:-1], 99] if text == "a  b" else known

    found = proof(Other(reference()))
    assert found.faults[0] == (
        "the text 'a  b' has other tokens in llama.cpp, from token 0: [99] instead of [12]"
    )
    assert found.lines()[0].startswith("not the model: the text")


def test_a_missing_stop_is_a_fault():
    """An answer that never ends is what people report most."""

    class Endless(Same):
        def ends(self, token):
            return False

    assert "llama.cpp does not stop at token 2" in proof(Endless(reference())).faults[0]


def test_a_stop_inside_an_answer_is_a_fault():
    """The answer would be cut."""

    class Early(Same):
        def ends(self, token):
            return True

    assert "stops at token 5 inside an answer" in proof(Early(reference())).faults[0]


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

    class Takes(Same):
        def choice(self, at, token):
            return 6 if at < count else token

    found = proof(Takes(reference(gap=gap)), kind)
    assert (found.same, found.ties) == (100 - count, [gap] * count)
    if fault:
        assert any(fault in one for one in found.faults)
    else:
        assert found.faults == []


def test_a_token_that_nobody_thought_of_is_far_from_a_tie():
    """It is not among the likeliest of transformers, so it is as far as the last of them at least."""

    class Odd(Same):
        def choice(self, at, token):
            return 77 if at == 0 else token

    assert "transformers is sure: 0.7 apart" in proof(Odd(reference())).faults[0]


def test_a_failure_of_llama_cpp_is_a_fault():
    """Not the end of the export: the file stays, under the name that says so."""

    class Refuses(Same):
        def __call__(self, request):
            raise EngineFailed("unknown model architecture")

    assert proof(Refuses(reference())).faults == ["unknown model architecture"]


def test_a_model_that_ends_no_answer_is_proved_by_its_end_tokens():
    """A base model may write on for ever, in both."""
    found = proof(Same(reference(stopped=False)))
    assert found.faults == []
    assert "0 of 0 answers that end" in found.lines()[-1]


# --------------------------------------------------------------------------- llama.cpp


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without llama.cpp, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
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
    return library


def test_a_machine_without_llama_cpp_has_none(bare):
    """None, and no error: the file is then not compared."""
    assert find_llama_cpp() is None


def test_the_package_of_npm_is_found_from_a_folder_below(bare, monkeypatch):
    """The build without a GPU is taken."""
    node_package(bare, "-cuda")
    library = node_package(bare)
    (bare / "work").mkdir()
    monkeypatch.chdir(bare / "work")
    assert find_llama_cpp() == library.resolve()


def test_of_a_named_folder_the_build_for_this_machine_is_taken(bare, monkeypatch):
    """npm may have installed those for other processors beside it."""
    other = bare / "node_modules" / "@node-llama-cpp" / "a-first" / "bins" / "a-first"
    other.mkdir(parents=True)
    (other / "libllama.so").write_bytes(b"x")
    library = node_package(bare)
    monkeypatch.setenv(llama_cpp.VARIABLE, str(bare / "node_modules"))
    assert find_llama_cpp() == library.resolve()


def test_a_named_place_without_the_library_is_said(bare, monkeypatch):
    """A wrong path is no reason to take another one."""
    node_package(bare)
    monkeypatch.setenv(llama_cpp.VARIABLE, str(bare / "elsewhere"))
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
    assert find_llama_cpp() == (bare / "lib" / "libllama.so").resolve()


REQUEST = {"model": "x.gguf", "context": 64, "texts": [], "ends": [], "answers": []}


def test_a_file_that_is_no_library_is_an_answer_of_the_engine(tmp_path):
    """The child process says so; nothing crashes here."""
    (tmp_path / "libllama.so").write_bytes(b"no library")
    with pytest.raises(EngineFailed, match=r"no llama\.cpp library that can be used"):
        ask(tmp_path / "libllama.so", REQUEST)


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
@pytest.mark.parametrize(
    ("does", "match"),
    [
        ("read line; kill -11 $$", r"crashed \(exit -11\)"),
        ("exec sleep 60", "did not answer in 0.5 s"),
        ("echo garbage", "no answer that can be read"),
        ("echo '[1]'", "no answer that can be read"),
        ("echo '{\"error\": 5}'", "5"),
    ],
)
def test_an_engine_that_crashes_hangs_or_talks_nonsense_is_ended(
    tmp_path, monkeypatch, does, match
):
    """A native library that kills its process does not end the export."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(llama_cpp, "LIMIT_S", 0.5)
    with pytest.raises(EngineFailed, match=match):
        ask(tmp_path / "libllama.so", REQUEST)


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
