"""argv in, exit code out. The only place that catches AdviseError.

A command is a module of advisor/commands with a function of the same name; it is loaded when it is
used, so that `advise --json` and `advise --help` start without the others.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import sys
from importlib import import_module
from typing import Any, cast

import click

from advisor.commands.options import (
    AdviceOptions,
    Sections,
    answer_options,
    choose_option,
    json_option,
    rule_options,
)
from advisor.commands.output import expect_json, print_error_json, say
from advisor.ground.errors import AdviseError, InputError, Stopped, did_you_mean
from advisor.ground.files import refused_as_path, refused_by_system, restrict_umask
from advisor.ground.terminal import mask_secrets, show_streams, shown
from advisor.ground.version import __version__
from advisor.methods import methods

# Command -> its line in `advise --help`, the first sentence of its own help.
COMMANDS = {
    "run": "Train a plan stage by stage, and resume automatically.",
    "demo": "Train a small real model with the recommended method, and show what changed.",
    "chat": "Chat with what was trained, beside its base model.",
    "export": "Write a plan or the result of a run in another form.",
    "check": "Check data, a training script, a configuration or a run, and say what is wrong.",
    "estimate": "Estimate memory and time for a plan, a single configuration, or a list.",
    "probe": "Show what this machine offers for training.",
    "rules": "List the rules, explain one, or prove them all.",
    "ui": "Open a page that asks, answers, writes plans and runs them on this machine.",
    "mcp": "Answer agents over standard input and output, by the Model Context Protocol.",
}
COMPLETION = "_ADVISE_COMPLETE"  # set by the line that `advise --help` prints


class Commands(Sections, click.Group):
    """The commands, each loaded when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return cast(click.Command, getattr(import_module(f"advisor.commands.{name}"), name))

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            runs = f"`advise run {shlex.quote(args[0])}` trains a plan"
            hint = runs if args[0].endswith((".yaml", ".yml")) else did_you_mean(args[0], COMMANDS)
            known = f"commands: {', '.join(COMMANDS)}"
            raise InputError(f"unknown command '{args[0]}'", known, hint)
        return super().resolve_command(context, args)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(context, formatter)
        Sections.format_options(self, context, formatter)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    epilog='Tab completes in bash after `eval "$(_ADVISE_COMPLETE=bash_source advise)"`; zsh_source'
    " and fish_source are there, too.\n\nFor coding agents: `advise rules agents` prints how to"
    " use --json, step by step.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="advise")
@json_option
@answer_options
@rule_options
@click.option(
    "--plan", "plan_file", metavar="FILE", type=click.Path(), help="Also write the launch file."
)
@click.option("--brief", is_flag=True, help="With --json: the answer in two kilobytes.")
@click.option("--why", is_flag=True, help="Print the whole answer: every reason and its source.")
@choose_option
@click.option(
    "--force",
    is_flag=True,
    help="Let --choose take a candidate that ranks lower or is advised against, and --plan"
    " overwrite an existing file.",
)
@click.pass_context
def advise(context: click.Context, /, **options: Any) -> None:
    """Recommend a fine-tuning method, say why and why not each other one, and write a launch file
    that runs it.

    Without a command and without flags it asks a few questions on the terminal. With --json it
    answers at once.
    """
    methods().check()
    command = context.invoked_subcommand
    if command is not None:
        if any(options.values()):
            hint = f"write them after it: advise {command} ..."
            raise InputError(f"flags before the command '{command}' are not read", hint=hint)
        return
    from advisor.commands.advise import answer  # no other command needs it

    context.exit(answer(AdviceOptions.of(options)))


def main() -> None:
    """Entry point of the `advise` command."""
    # An answer is made and the process ends: what is loaded stays, so looking for what could be
    # freed took a fourteenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    restrict_umask()
    open_standard_streams()
    show_streams()
    correct_screen_size()
    if instruction := os.environ.get(COMPLETION):  # click's own main() would ask for it
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(advise, {}, "advise", COMPLETION, instruction))
    expect_json(sys.argv[1:])
    code = 0
    try:
        # Not click's own main(), which ends with exit code 1 if the reader of the output has gone.
        with advise.make_context("advise", repeat_map_flag(sys.argv[1:]), obj=main) as context:
            advise.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except BrokenPipeError:
        drop_output()
    except SystemExit:
        raise
    except BaseException as error:  # a bug too is said in words, and as JSON
        code = report(error)
    gc.freeze()  # else Python looks through everything once more at the end
    sys.exit(code or 0)


def repeat_map_flag(arguments: list[str]) -> list[str]:
    """The arguments with `--map a=x b=y` as `--map a=x --map b=y`, `help run` as `run --help`."""
    if arguments[:1] == ["help"]:
        return [*arguments[1:2], "--help"]
    result: list[str] = []
    inside = False
    for argument in arguments:
        is_pair = inside and "=" in argument and not argument.startswith("-")
        if is_pair and result[-1] != "--map":
            result.append("--map")
        inside = argument == "--map" or is_pair
        result.append(argument)
    return result


def open_standard_streams() -> None:
    """Replace each standard stream that was closed by the caller (`<&-`) by /dev/null, and let
    standard output show what it cannot write by its code point, as standard error does.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def correct_screen_size() -> None:
    """Forget what the environment says of the screen unless it is a size: some editors and build
    servers export COLUMNS=0, with which rich would print nothing at all.
    """
    for name in ("COLUMNS", "LINES"):
        if re.fullmatch(r"[1-9]\d{1,2}", os.environ.get(name, "")) is None:
            os.environ.pop(name, None)


def drop_output() -> None:
    """Discard what standard output still holds: the process would fail on it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: BaseException) -> int:
    """Say what ended the command, with --json as the one document. Returns the exit code."""
    failure = explain(error)
    say(failure.text())
    try:
        print_error_json(failure.faults)
        sys.stdout.flush()
    except OSError:  # nobody reads it, or the disk is full: it was said on standard error
        drop_output()
    return failure.exit_code


def explain(error: BaseException) -> AdviseError:
    """An exception as a failure that a person can understand."""
    failure: AdviseError | None = None
    if isinstance(error, click.ClickException):
        failure = explain_usage(error)
    elif isinstance(error, AdviseError):
        failure = error
    elif isinstance(error, KeyboardInterrupt | EOFError | click.Abort):
        failure = Stopped("stopped")
    elif isinstance(error, OSError):
        failure = refused_by_system(error)
        if failure is not None and error.filename is None:  # the output itself
            drop_output()
    elif isinstance(error, Exception):
        failure = refused_as_path(error)
    return failure or log_bug(error)


def explain_usage(error: click.ClickException) -> AdviseError:
    """What click says of arguments that it cannot read."""
    context: click.Context | None = getattr(error, "ctx", None)
    command = "advise" if context is None else context.command_path
    parameter = getattr(error, "param", None)
    where = getattr(error, "option_name", None) or command  # of an unknown option
    if parameter is not None:
        is_option = isinstance(parameter, click.Option)
        where = parameter.opts[-1] if is_option else parameter.human_readable_name
    return InputError(
        shown(error.format_message()),
        allowed="" if context is None else context.get_usage().removeprefix("Usage: "),
        hint=f"`{command} --help` lists what it takes",
        where=where,
    )


def log_bug(error: BaseException) -> AdviseError:
    """An unplanned exception as a failure that names the file which keeps its trace."""
    import tempfile  # slow to import, and seldom needed
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="advise-bug-", suffix=".log", delete=False) as log:
        trace = "".join(traceback.format_exception(error))
        words = f"finetune-advisor {__version__}\n{' '.join(sys.argv)}\n\n{trace}"
        log.write(mask_secrets(shown(words)))
    return AdviseError(
        f"this is a bug in advise: {type(error).__name__}: {error}",
        hint=f"the details are in {log.name}",
    )
