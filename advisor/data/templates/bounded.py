"""Chat templates rendered within limits of time and memory, in a process of their own (`worker`):
they are programs by whoever made the model.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from advisor.data.templates.worker import BROKEN, LIMIT, OUT_OF_MEMORY
from advisor.ground.errors import InputError, MachineNotReady

MOST_SECONDS = 1.0  # of the process's own computing, for one conversation
MOST_BYTES = 512 * 2**20  # of the process, with the interpreter and Jinja: some 40 MiB
MOST_CHARACTERS = 2**24  # of a whole conversation
LIMITS = (
    f"for one conversation at most {MOST_SECONDS:g} s of computing, {MOST_BYTES >> 20} MiB of"
    f" memory and {MOST_CHARACTERS:,} characters"
)
ENDS = {  # exit codes of the process -> why it ended
    OUT_OF_MEMORY: f"takes more than {MOST_BYTES >> 20} MiB of memory",
    -getattr(signal, "SIGPROF", 0): "does not come to an end",
    1: "does not come to an end",  # on the clock of Python's own
}


class TemplateLimit(InputError):
    """A chat template took more time or space than any conversation needs."""

    def __init__(self, why: str, *, at: str = "the chat template", row: int | None = None) -> None:
        self.why = why
        there = f" at row {row}" if row is not None else ""
        super().__init__(
            f"{at}{there}: it {why}",
            allowed=LIMITS,
            hint="take the template of the model's publisher, or another model",
        )

    def of(self, at: str, row: int | None = None) -> TemplateLimit:
        """The same error with the template's place and the row that it was to write."""
        return TemplateLimit(self.why, at=at, row=row)


class RefusedByTemplate(Exception):
    """The template does not take this conversation."""


class BrokenTemplate(RefusedByTemplate):
    """It is no template."""


Range = tuple[int, int]  # of characters


def _line(data: Any) -> bytes:
    return json.dumps(data).encode("ascii") + b"\n"


class Renderer:
    """The process that renders for this one. It is started when it is first asked, and ends when
    nobody can ask any more.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._owner = 0  # a fork has none
        self._lock = threading.Lock()

    def render(
        self, source: str, values: Mapping[str, Any] | None = None, *, today: date | None = None
    ) -> tuple[str, list[Range]]:
        """(the text, the ranges of its {% generation %} blocks); without values it is only
        compiled.

        Raises RefusedByTemplate, TemplateLimit, and MachineNotReady if there is no such process.
        """
        try:
            request = _line([source, today and today.isoformat(), values])
        except (TypeError, ValueError, RecursionError) as error:  # of data that JSON does not have
            raise RefusedByTemplate(str(error)) from None
        with self._lock:
            try:
                kind, text, ranges = json.loads(self._answered(request))
            except BaseException:  # what it still says is no answer to what is asked next
                self.end()
                raise
        if kind == LIMIT:
            raise TemplateLimit(text)
        if kind:
            raise (BrokenTemplate if kind == BROKEN else RefusedByTemplate)(text)
        return text, [(start, end) for start, end in ranges]

    def end(self) -> None:
        """End the process; the next rendering starts another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _answered(self, request: bytes) -> bytes:
        if self._process is None or self._owner != os.getpid():
            self._start()
        process, line = self._process, b""
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            pass
        if line.endswith(b"\n"):
            return bytes(line)
        code = process.wait()
        if code == -getattr(signal, "SIGKILL", 9):
            raise MachineNotReady(
                "the process that renders chat templates was ended from outside",
                hint="most likely by the kernel, for lack of memory: `dmesg` says",
            )
        raise TemplateLimit(ENDS.get(code, "ends the process that renders it"))

    def _start(self) -> None:
        import subprocess

        script = str(Path(__file__).with_name("worker.py"))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise MachineNotReady(
                f"the process that renders chat templates does not start: {error.strerror}",
                hint="chat templates need processes: run it where they are allowed",
            ) from None
        self._owner = os.getpid()
        paths = [path for path in sys.path if path]
        limits = MOST_BYTES, MOST_SECONDS, MOST_CHARACTERS
        self._process.stdin.write(_line([paths, *limits]))


RENDERER = Renderer()


class Template:
    """A chat template in the place of transformers' compiled one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.environment = self  # as far as transformers asks for it
        self._ranges: list[Range] = []

    def render(self, **values: Any) -> str:
        return RENDERER.render(self.source, values)[0]

    @contextmanager
    def activate_tracker(self, _written: list[str], ranges: list[Range]) -> Iterator[None]:
        self._ranges = ranges
        yield

    def generate(self, **values: Any) -> Iterator[str]:
        text, ranges = RENDERER.render(self.source, values)
        self._ranges += ranges
        yield text


def bound_chat_templates() -> None:
    """Make transformers, and TRL through it, render chat templates within the limits."""
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template = Template
