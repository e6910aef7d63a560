"""llama.cpp in a process of its own: a crash of a native library is an answer there, not the end of
the export.

Run: python -P -m trainers.tools.gguf.engine LIBRARY. It reads requests, one JSON object a line, and
answers each with one line: `{"ok": ...}` or `{"error": "..."}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from advisor.ground.terminal import show_streams
from trainers.frame.machine import usable_cores
from trainers.tools.gguf.find import LlamaCpp

# Seconds for one answer: a large model on few cores takes minutes, and never hours.
LIMIT_S = 1800.0
LIMITS_S = {"quantize": 4 * 3600.0}
LEAVING_S = 10.0  # until it has ended by itself
MOST_CHARACTERS = 1 << 28  # of one answer


class EngineFailed(Exception):
    """llama.cpp could not do it. The text says what it said."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an engine computed behind one token."""

    best: int  # the most likely token
    logprob: float  # of the best
    watched: tuple[float, ...]  # log-probabilities of the tokens that were asked for


class Engine(Protocol):
    """Something that reads GGUF files and computes as llama.cpp does."""

    what: str  # name and version

    def load(self, path: Path, *, context: int, adapter: Path | None = None) -> None: ...
    def tokens(self, texts: Sequence[str], *, whole: bool) -> list[list[int]]: ...
    def ends(self, tokens: Sequence[int]) -> list[bool]: ...
    def score(
        self, prompt: Sequence[int], answer: Sequence[int], watched: Sequence[Sequence[int]]
    ) -> list[Place]: ...


def threads_for_llama_cpp() -> int:
    """Half of the cores, or what OMP_NUM_THREADS says: its threads wait for each other by spinning,
    so that one more than there is room for makes every token ten times as slow.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else max(1, usable_cores() // 2)


class Process:
    """libllama in a child process. Every method raises EngineFailed."""

    def __init__(self, llama_cpp: LlamaCpp) -> None:
        self.what = llama_cpp.what
        self.threads = threads_for_llama_cpp()
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainers.tools.gguf.engine", str(llama_cpp.library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.child.kill()
        with suppress(OSError):
            if self.child.stdin is not None:
                self.child.stdin.close()
        try:
            self.child.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()

    def ask(self, action: str, **values: Any) -> Any:
        """What the child answers."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        line, late = "", threading.Event()
        limit_s = LIMITS_S.get(action, LIMIT_S)

        def end() -> None:
            late.set()
            self.child.kill()

        clock = threading.Timer(limit_s, end)
        clock.daemon = True
        clock.start()
        try:
            with suppress(BrokenPipeError):
                self.child.stdin.write(json.dumps({"do": action, **values}) + "\n")
                self.child.stdin.flush()
                line = self.child.stdout.readline(MOST_CHARACTERS)
        finally:
            clock.cancel()
        if late.is_set():
            raise EngineFailed(
                f"llama.cpp did not answer in {limit_s:,g} s when it was asked to {action}"
            )
        if not line:
            self.child.kill()  # it may have closed its output alone
            code = self.child.wait()
            raise EngineFailed(f"llama.cpp crashed (exit {code}) while it was asked to {action}")
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
        if not isinstance(answer, dict) or not {"ok", "error"} & set(answer):
            self.child.kill()
            raise EngineFailed(f"llama.cpp gave no answer that can be read to {action}")
        if "error" in answer:
            raise EngineFailed(str(answer["error"]))
        return answer["ok"]

    def load(self, path: Path, *, context: int, adapter: Path | None = None) -> None:
        self.ask(
            "load",
            path=str(path),
            context=context,
            threads=self.threads,
            adapter=str(adapter) if adapter else None,
        )

    def tokens(self, texts: Sequence[str], *, whole: bool) -> list[list[int]]:
        return self.ask("tokens", texts=list(texts), whole=whole)

    def ends(self, tokens: Sequence[int]) -> list[bool]:
        return self.ask("ends", tokens=list(tokens))

    def score(
        self, prompt: Sequence[int], answer: Sequence[int], watched: Sequence[Sequence[int]]
    ) -> list[Place]:
        found = self.ask("score", prompt=prompt, answer=answer, watched=watched)
        return [Place(best=one, logprob=two, watched=tuple(rest)) for one, two, rest in found]

    def quantize(self, source: Path, target: Path, level: str) -> str:
        """Write a smaller file; what llama.cpp said last."""
        return self.ask(
            "quantize", source=str(source), target=str(target), level=level, threads=self.threads
        )


# --------------------------------------------------------------------------- in the child


def main() -> int:
    """Answer requests until there are no more."""
    from trainers.tools.gguf.libllama import Library, UnknownLibrary

    # What a library prints belongs elsewhere than between our answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    show_streams()
    try:
        server = _Server(Library(Path(sys.argv[1])))
    except (OSError, UnknownLibrary) as error:
        server = None
        fault = f"{sys.argv[1]} is no llama.cpp library that can be used: {error}"
    for line in sys.stdin:
        request = json.loads(line)
        if server is None:
            answer: dict[str, Any] = {"error": fault}
        else:
            try:
                answer = {"ok": getattr(server, f"do_{request.pop('do')}")(**request)}
            except RuntimeError as error:
                answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


class _Server:
    def __init__(self, library: Any) -> None:
        self.library = library
        self.session: Any = None

    def do_load(self, path: str, context: int, threads: int, adapter: str | None) -> bool:
        from trainers.tools.gguf.libllama import Session

        if self.session is not None:
            self.session.close()
        self.session = Session(self.library, Path(path), context=context, threads=threads)
        if adapter:
            self.session.use_adapter(Path(adapter))
        return True

    def do_tokens(self, texts: list[str], whole: bool) -> list[list[int]]:
        return [self.session.tokens(text, whole=whole) for text in texts]

    def do_ends(self, tokens: list[int]) -> list[bool]:
        return [self.session.ends(token) for token in tokens]

    def do_score(
        self, prompt: list[int], answer: list[int], watched: list[list[int]]
    ) -> list[tuple[int, float, list[float]]]:
        """At each place of the answer: what is computed behind the tokens before it."""
        import numpy

        self.session.forget()
        found = []
        for token, asked in zip([None, *answer[:-1]], watched, strict=True):
            logits = self.session.read(prompt if token is None else [token]).astype(numpy.float64)
            log_probs = logits - numpy.logaddexp.reduce(logits)
            best = int(log_probs.argmax())
            found.append((best, float(log_probs[best]), [float(log_probs[i]) for i in asked]))
        return found

    def do_quantize(self, source: str, target: str, level: str, threads: int) -> str:
        self.library.log.clear()
        self.library.quantize(Path(source), Path(target), level, threads)
        return self.library.log[-1] if self.library.log else ""


if __name__ == "__main__":
    sys.exit(main())
