"""The process that renders chat templates: they are programs by whoever made the model.

Jinja's sandbox keeps a template from other people's objects, not from running for ever or from
filling memory. The kernel does: at its limits this process ends, and nothing else with it. It is
started as a script that knows nothing of ours, and answers each line of JSON with another.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from datetime import date, datetime
from functools import lru_cache
from typing import Any

BROKEN, REFUSED, LIMIT = "broken", "refused", "limit"  # kinds of answers besides a text
MOST_SAID = 1000  # characters of an error
OUT_OF_MEMORY = 12  # an exit code


@lru_cache(maxsize=4)
def compiled(source: str, today: str | None) -> Any:
    """The template, with what transformers gives to all of them, and the date as it shall be."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` around what the assistant says: written as it is, its place noted."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_noted")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _noted(self, caller: Any) -> str:
            text, before = str(caller()), sum(map(len, made.written))
            made.ranges.append((before, before + len(text)))
            return text

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        return (date.fromisoformat(today) if today else datetime.now()).strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        given = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **given)

    made: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.extend(written=[], ranges=[])
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made.from_string(source)


def answer(
    most_characters: int, source: str, today: str | None, values: dict[str, Any] | None
) -> tuple[str, str, list[tuple[int, int]]]:
    """(kind, text, the ranges of its {% generation %} blocks); without values it is compiled."""
    kind, size = BROKEN, 0
    try:
        template, kind = compiled(source, today), REFUSED
        written, ranges = template.environment.written, template.environment.ranges
        written.clear()
        ranges.clear()
        for part in template.generate(**values) if values is not None else ():
            written.append(part)
            size += len(part)
            if size > most_characters:
                return LIMIT, f"makes a text of more than {most_characters:,} characters", []
        return "", "".join(written), ranges
    except MemoryError:
        raise
    except Exception as error:  # a template may raise anything: its author's own complaints
        if kind == REFUSED and isinstance(error, RecursionError):
            return LIMIT, "calls itself without an end", []
        return kind, str(error)[:MOST_SAID] or type(error).__name__, []


def hold_memory(most_bytes: int) -> bool:
    """Let the kernel refuse this process more memory; whether it does."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    except (ImportError, ValueError, OSError):  # Windows; or less is allowed already
        return False
    return sys.platform != "darwin"  # which takes this limit, and does not keep to it


def hold_time(seconds: float, is_held: bool) -> None:
    """End this process after so much computing of its own; 0: let it go on. Where its memory is not
    held, or the kernel has no such clock, the wall's ends it after ten times as long: what swaps
    hardly computes.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if is_held:
        return
    if seconds:
        faulthandler.dump_traceback_later(10 * seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Answer until nobody asks any more."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # of a run that finishes its step
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.path[:], most_bytes, most_seconds, most_characters = json.loads(asked.readline())
    is_held = hold_memory(most_bytes)
    for line in asked:
        hold_time(most_seconds, is_held)
        said = json.dumps(answer(most_characters, *json.loads(line)))
        hold_time(0, is_held)
        answers.write(said.encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
