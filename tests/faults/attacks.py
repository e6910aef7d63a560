"""Attacks by a table: what stands in place of a file of a run folder or a model folder, and chat
templates that cost much or reach far.

    python -m tests.faults.attacks

Each row is given to the real `advise` in a fork with limits, as fuzzed inputs are: no traceback, no
hang, no exit code but the documented ones, nothing written or read without end. A further attack is
a further row.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.fuzz.run import Case, fuzz, prepared
from tests.faults.fuzz.seeds import RUN, Files, Target, around
from tests.faults.table import Row, print_rows

# What stands where a file is expected. `outside` is beside the folder that the command works in.
THINGS: Mapping[str, Callable[[Path], object]] = {
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a file outside": lambda path: path.symlink_to(_outside(path, "file")),
    "a link to a folder outside": lambda path: path.symlink_to(_outside(path, "folder")),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
}
RUN_FILES = (
    "run.json", "plan.yaml", ".lock", "metrics.jsonl", "report.html", "dry_run.json", "stages", "stages/sft",
    "stages/sft/result.json", "stages/sft/adapter_config.json", "stages/sft/adapter_model.safetensors",
    "stages/sft/doing.json", "stages/sft/error.json", "stages/sft/adjusted.json",
    "stages/sft/checkpoints", "progress.json", "prepared",
)  # fmt: skip
RUN_COMMANDS = (
    "run plan.yaml --output run", "run run", "check run", "chat run", "export run --to merged",
)  # fmt: skip
MODEL_FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "adapter_config.json",
)  # fmt: skip
MODEL_COMMANDS = (
    "--json --task qa --model ./model --gpu none", "estimate plan.yaml",
    "check chats.jsonl --model ./model", "run plan.yaml --output out",
)  # fmt: skip
# Files that a person names: data, answers, a plan, rules.
NAMED = {
    "plan.yaml": ("estimate plan.yaml", "run plan.yaml --output out", "export plan.yaml --to trl"),
    "chats.jsonl": ("check chats.jsonl", "--json --data chats.jsonl", "run plan.yaml --output out"),
    "answers.yaml": ("--json --answers answers.yaml",),
    "own.yaml": ("--json --task qa --rules own.yaml", "check own.yaml"),
    "specs.json": ("estimate --json --specs specs.json",),
}
BIG = 3_000_000_000
# Chat templates: text and bytes that grow, loops, and what a sandbox must not give out.
TEMPLATES = {
    "text times": "{% set b = 'a' * BIG %}",
    "bytes times": "{% set b = 'a'.encode() * BIG %}",
    "bytes plus": "{% set n = namespace(b='a'.encode()) %}{% for _ in range(40) %}"
    "{% set n.b = n.b + n.b %}{% endfor %}",
    "bytes replaced": "{% set b = ('a'.encode() * 9999999).replace('a'.encode(), ('b' * 999).encode()) %}",
    "bytes joined": "{% set b = 'a'.encode().join([('b' * 9999).encode()] * 999999) %}",
    "bytes expanded": "{% set b = '\\t'.encode().expandtabs(BIG) %}",
    "bytes of UTF-32": "{% set b = ('a' * 99999999).encode('utf-32') %}",
    "text split": "{% set b = 'ab ' * 5000000 %}{% for _ in range(5) %}{% set l = b.split() %}{% endfor %}",
    "text formatted": "{{ '%3000000000d' % 1 }}",
    "text formatted by name": "{{ '{:>3000000000}'.format(1) }}",
    "text filled": "{{ 'a'.ljust(BIG) }}",
    "lists summed": "{{ ([[1] * 200000] * 200) | sum(start=[]) | length }}",
    "a list times": "{% set b = [0] * BIG %}",
    "a number to the power": "{{ 9 ** 9 ** 9 }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a macro of itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "lines that break": "{{ ('\\n' * 99999999).splitlines() | length }}",
    "formats an attribute": "{{ ('{0.__class__.__mro__}' | attr('format'))('x') }}",
    "formats by a map": "{{ '{0.__class__.__mro__}'.format_map({'0': 'x'}) }}",
    "asks for an attribute": "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}",
}
EACH = "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}"


def _outside(path: Path, name: str) -> Path:
    return next(one for one in path.parents if one.name == "case").parent / "outside" / name


def cases(run: Files) -> Iterator[Case]:
    """Every attack; `run` holds the files of a finished run named `run`."""
    beside = around() | {"answers.yaml": b"task: qa\n", "own.yaml": b"{}", "specs.json": b"[]"}
    common = Target(
        "", (), (), "", (), codes=RUN, most_wall_s=30.0, most_bytes=2 * 2**30, cpu_s=8.0
    )
    # A run that cannot go on may say so in its own folder.
    usual = {"run folder": "changed although refused: run/(run.json|.lock|report.html)"}
    places = [
        *(("run folder", f"run/{name}", RUN_COMMANDS, beside | run) for name in RUN_FILES),
        *(("model folder", f"model/{name}", MODEL_COMMANDS, beside) for name in MODEL_FILES),
        *(("named file", name, commands, beside) for name, commands in NAMED.items()),
    ]
    for turn, (where, name, commands, files) in enumerate(places):
        kept = {key: one for key, one in files.items() if not f"{key}/".startswith(f"{name}/")}
        for number, (thing, put) in enumerate(THINGS.items(), turn):
            # Two of the commands, so that each of them meets everything somewhere.
            for command in [*commands, *commands][number % len(commands) :][:2]:
                yield Case(
                    replace(common, name=where, usual=usual.get(where, "$^")), kept | {name: put},
                    command.split(), f"{name} is {thing}: {command}",
                )  # fmt: skip
    template = replace(common, name="chat template", cpu_s=12.0)
    for name, text in TEMPLATES.items():
        content = (text.replace("BIG", str(BIG)) + EACH).encode()
        files = beside | {"model/chat_template.jinja": content}
        yield Case(template, files, ["check", "chats.jsonl", "--model", "./model"], name)


def main(only: Sequence[str]) -> None:
    with prepared() as (folder, every):
        run = next(target.around for target in every if target.name == "run.json")
        outside = folder / "outside"
        (outside / "folder").mkdir(parents=True)
        (outside / "file").write_text("of somebody else")
        tried = [one for one in cases(run) if all(word in one.what for word in only)]
        rows = fuzz(tried, folder, "attack", "attack")
        left = {path.name for path in outside.rglob("*")}
        if left != {"folder", "file"} or (outside / "file").read_text() != "of somebody else":
            rows.append(Row(fault="attack", where="outside", wrong=[f"it was changed: {left}"]))
        print_rows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
