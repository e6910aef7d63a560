"""`advise chat`: talk to what was trained, beside its base model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from advisor.commands.output import refuse_without, run_tool, say
from advisor.ground.errors import AdviseError
from advisor.record.files import device_of, find_run, newest_run, read_record
from advisor.render.run import verdict_lines, verdict_of


def greet(folder: Path) -> None:
    """Say what is known of a run's result before anybody talks to it; nothing of a folder whose
    record cannot be read.
    """
    with suppress(AdviseError):
        record = read_record(folder)
        if record is not None and (lines := verdict_lines(record, folder)):
            found = verdict_of(record, folder)
            plain = [f"  {found.plain.text}"] if found and found.plain else []
            say("\n".join([f"{record.name}, as it was measured:", *plain, *lines, ""]))


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path())
@click.option(
    "--with",
    "voices",
    multiple=True,
    metavar="NAME",
    help="Which task or stage answers, or `base`; repeatable.",
)
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N"
)
@click.pass_context
def chat(
    context: click.Context,
    runs: tuple[str, ...],
    voices: tuple[str, ...],
    system: str | None,
    max_new_tokens: int,
) -> None:
    """Chat with what was trained, beside its base model.

    Without a run it takes the newest one under ./runs. Questions may also come from a pipe: then
    the result alone answers. A classifier names the class of each line, a reward model scores the
    answer behind each question. Ctrl-C stops an answer, `exit` or Ctrl-D ends the chat.
    """
    folders = [find_run(run) for run in runs] or [newest_run(Path.cwd())]
    refuse_without(("torch", "transformers", "peft"), "`advise chat`")
    for folder in folders:
        greet(folder)
    with interrupts_left_to_child():
        done = run_tool(
            "chat",
            *map(str, folders),
            "--device",
            device_of(folders[0]),
            "--max-new-tokens",
            str(max_new_tokens),
            *(word for voice in voices for word in ("--with", voice)),
            *(["--system", system] if system else []),
        )
    context.exit(done.returncode)


@contextmanager
def interrupts_left_to_child() -> Iterator[None]:
    """Ctrl-C reaches the chat too, where it stops an answer: here it does nothing."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which a child inherits
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
