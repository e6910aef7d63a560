"""llama.cpp: where its library is on this machine, and what it answers in a process of its own, so
that a crash ends that process and no other.

The first of these counts: ADVISE_LLAMA_CPP (the library or a folder with it), the Python package
llama-cpp-python, npm's node-llama-cpp (in this folder or one above it, or installed globally), the
folder of llama-cli, llama-quantize or llama-server on PATH.

Run: python -P -m trainers.tools.gguf.llama_cpp LIBRARY. It reads a request as JSON and writes what
was asked for, or `{"error": "..."}`. What it calls of llama.h (read at v0.4.0 and v0.5.0) and the
one field that it sets have kept their place; where they have not, that is noticed. Structures are
handed back as they came, in a buffer larger than any of them: both ways of passing them by value (a
copy on the stack, or a pointer to one) allow that.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.ground.errors import MachineNotReady
from advisor.ground.terminal import show_streams
from trainers.job.machine import usable_cores

VARIABLE = "ADVISE_LLAMA_CPP"
LIBRARIES = ("libllama*.so*", "libllama*.dylib", "llama*.dll")
PROGRAMS = ("llama-cli", "llama-quantize", "llama-server")
PROCESSORS = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}
LIMIT_S = 4 * 3600.0  # for one answer: a large model on few cores takes long, but not longer
HOW = (
    "install one of: npm install node-llama-cpp (prebuilt; in this folder), pip install"
    " llama-cpp-python, or llama.cpp itself (llama-cli on PATH, or ADVISE_LLAMA_CPP=FOLDER)"
)
BATCH_TOKENS = 512  # in one call
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class EngineFailed(Exception):
    """llama.cpp could not do it. The text says what it said."""


def find_llama_cpp() -> Path | None:
    """The library that exports are proved with; None if there is none.

    Raises MachineNotReady if ADVISE_LLAMA_CPP names a place without one.
    """
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        found = [path] if path.is_file() else sorted(_libraries(path.rglob), key=_plain_first)
        if not found:
            raise MachineNotReady(
                f"{VARIABLE} is {named}: there is no libllama there",
                allowed="the library, or a folder with it",
                hint=HOW,
            )
        return found[0].resolve()
    return next((library.resolve() for library in _on_this_machine()), None)


def _on_this_machine() -> Iterator[Path]:
    package = find_spec("llama_cpp")
    if package is not None and package.origin is not None:
        yield from _libraries((Path(package.origin).parent / "lib").glob)
    here, node = Path.cwd(), shutil.which("node")
    roots = [folder / "node_modules" for folder in (here, *here.parents)]
    if node is not None:
        roots.append(Path(node).resolve().parent.parent / "lib" / "node_modules")
    for root in roots:
        for inside in (root, root / "node-llama-cpp" / "node_modules"):
            builds = (inside / "@node-llama-cpp").glob("*/bins/*")
            found = [library for build in builds for library in _libraries(build.glob)]
            yield from (one for one in sorted(found, key=_plain_first) if _is_ours(one, root))
    for program in filter(None, map(shutil.which, PROGRAMS)):
        folder = Path(program).resolve().parent
        yield from (*_libraries(folder.glob), *_libraries((folder.parent / "lib").glob))


def _libraries(matches: Callable[[str], Iterable[Path]]) -> Iterator[Path]:
    for pattern in LIBRARIES:
        for path in sorted(matches(pattern)):
            if path.is_file() and "common" not in path.name:
                yield path


def _plain_first(library: Path) -> tuple[bool, bool, int]:
    """Order of npm's builds: for this system and processor, and without a GPU, whose driver may not
    be here.
    """
    name, processor = library.parent.name, platform.machine().lower()
    system = {"darwin": "mac", "windows": "win"}.get(platform.system().lower(), "linux")
    fits = PROCESSORS.get(processor, processor) in name.split("-")
    return (not name.startswith(system), not fits, len(name))


def _is_ours(library: Path, root: Path) -> bool:
    """Whether nobody but this user and root can have put a library there: it is run. A folder above
    the current one, such as that of temporary files, may be everybody's.
    """
    if os.name != "posix":
        return True
    inside = [library.resolve(), *library.parents]
    found = [path.stat() for path in inside[: inside.index(root) + 1]]
    return all(one.st_uid in (0, os.getuid()) and not one.st_mode & stat.S_IWOTH for one in found)


def ask(library: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What libllama answers to a request, in a child. Raises EngineFailed.

    It gets half of the cores: its threads wait for each other by spinning, so that one more than
    there is room for makes every token ten times as slow.
    """
    request = {**request, "threads": max(1, usable_cores() // 2)}
    command = [sys.executable, "-P", "-m", "trainers.tools.gguf.llama_cpp", str(library)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=LIMIT_S,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"llama.cpp did not answer in {LIMIT_S:,g} s") from None
    except subprocess.CalledProcessError as error:
        raise EngineFailed(f"llama.cpp crashed (exit {error.returncode})") from None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or "error" in answer:
        said = answer["error"] if isinstance(answer, dict) else "no answer that can be read"
        raise EngineFailed(f"llama.cpp: {said}")
    return answer


# --------------------------------------------------------------------------- in the child


class Opaque(ctypes.Structure):
    """A structure of llama.h that is passed by value, with room to spare."""

    _fields_ = (("bytes_", ctypes.c_ubyte * 1024),)


POINTER, NUMBER, TEXT, FLAG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool
SIGNATURES: Mapping[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG, POINTER]),
    "llama_model_default_params": (Opaque, []),
    "llama_context_default_params": (Opaque, []),
    "llama_model_load_from_file": (POINTER, [TEXT, Opaque]),
    "llama_init_from_model": (POINTER, [POINTER, Opaque]),
    "llama_set_n_threads": (None, [POINTER, NUMBER, NUMBER]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (NUMBER, [POINTER]),
    "llama_vocab_is_eog": (FLAG, [POINTER, NUMBER]),
    "llama_tokenize": (NUMBER, [POINTER, TEXT, NUMBER, POINTER, NUMBER, FLAG, FLAG]),
    "llama_batch_get_one": (Opaque, [POINTER, NUMBER]),
    "llama_decode": (NUMBER, [POINTER, Opaque]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, NUMBER]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, FLAG]),
}


class Library:
    """libllama, loaded, with a GGUF file in memory and a context of so many tokens."""

    def __init__(self, path: Path, model: str, context: int, threads: int) -> None:
        """Raises OSError, AttributeError, RuntimeError with what llama.cpp said."""
        self.log: list[str] = []
        self.lib = lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        # llama.cpp says much; the last lines explain a failure.
        self._keep = LOG(lambda level, text, _: self._said(level, text or b""))
        lib.llama_log_set(self._keep, None)
        _load_backends(path, lib)
        lib.llama_backend_init()
        options = lib.llama_context_default_params()
        numbers = list((ctypes.c_uint32 * 3).from_buffer(options))
        if numbers != [512, 2048, 512]:  # n_ctx, n_batch, n_ubatch
            raise RuntimeError(f"llama_context_params begins with {numbers}")
        self.model = lib.llama_model_load_from_file(
            os.fsencode(model), lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("; ".join(self.log[-3:]) or "llama.cpp cannot load the file")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = int(lib.llama_vocab_n_tokens(self.vocab))
        ctypes.c_uint32.from_buffer(options).value = context
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("; ".join(self.log[-3:]) or "llama.cpp has no room for a context")
        lib.llama_set_n_threads(self.context, threads, threads)

    def _said(self, level: int, text: bytes) -> None:
        if level >= 3:  # warnings, errors
            self.log = [*self.log[-20:], text.decode("utf-8", "replace").rstrip()]

    def tokens(self, text: str, whole: bool) -> list[int]:
        """The tokens of a text; special ones in it count as such.

        Args:
            whole: Add what the tokenizer puts around a whole text, such as a token at its begin.
        """
        raw = text.encode("utf-8", "surrogatepass")
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), room, len(room), whole, True)
        if count < 0:
            raise RuntimeError("llama.cpp found more tokens than bytes")
        return list(room[:count])

    def choices(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The most likely token at each place of an answer, behind the tokens before it."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        parts = [prompt, *([token] for token in answer[:-1])]
        return [int(self._read(part).argmax()) for part in parts]

    def _read(self, tokens: Sequence[int]) -> Any:
        """The logits behind the last of these tokens, which follow what was read before: V."""
        import numpy

        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin : begin + BATCH_TOKENS]
            room = (ctypes.c_int32 * len(part))(*part)
            batch = self.lib.llama_batch_get_one(room, len(part))
            if code := self.lib.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode ended with {code}")
        pointer = self.lib.llama_get_logits_ith(self.context, -1)
        return numpy.ctypeslib.as_array(pointer, shape=(self.size,)).copy()


def _load_backends(path: Path, lib: Any) -> None:
    """Load the parts that compute, where they are files of their own beside the library."""
    others = [lib]
    for file in sorted(path.parent.glob("libggml.*")):
        with suppress(OSError):
            others.append(ctypes.CDLL(str(file)))
    for other in others:
        if hasattr(other, "ggml_backend_load_all_from_path"):
            other.ggml_backend_load_all_from_path(os.fsencode(path.parent))
            return


def answer(library: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for, or what llama.cpp said in place of it."""
    try:
        llama = Library(library, request["model"], request["context"], request["threads"])
        ends = llama.lib.llama_vocab_is_eog
        return {
            "tokens": [llama.tokens(text, whole) for text, whole in request["texts"]],
            "ends": [token for token in request["ends"] if ends(llama.vocab, token)],
            "choices": [llama.choices(*one) for one in request["answers"]],
        }
    except (OSError, AttributeError) as error:
        return {"error": f"{library} is no llama.cpp library that can be used: {error}"}
    except RuntimeError as error:
        return {"error": str(error)}


def main() -> int:
    """Answer one request, in a process of its own."""
    show_streams()
    # What a library prints belongs elsewhere than into our answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    json.dump(answer(Path(sys.argv[1]), json.load(sys.stdin)), answers)
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
