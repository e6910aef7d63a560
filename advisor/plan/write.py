"""A Plan as a launch file: short, in a fixed order, with the reason beside every chosen value.

Our own emitter in place of PyYAML's: it is quick to import, and every value reads back as it was
by YAML 1.2 and by YAML 1.1 (PyYAML's safe_load). `write_plan_file` overwrites nothing
of value.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.ground.annotated import defaults_of
from advisor.ground.errors import InputError
from advisor.ground.files import PLAN_FILE, bytes_of, write_atomically
from advisor.plan.entries import path_from, with_paths
from advisor.plan.keys import EXTRAS, key_specs, stated_extras
from advisor.plan.model import Comments, Place, Plan, Stage

# Written even if they equal the default: without them the file would not say what it is.
Lines = list[tuple[str, str]]  # (text, comment)
ALWAYS = {"version", "name", "model", "objective", "update", "learning_rate", "device", "path"}
HEADER = "Launch file of `advise`. Values may be edited; the reasons stand beside them."
START = " Start or resume with: advise run {name}"
COMMENT_COLUMN = 34  # where comments start, or after their block's longest line up to this
WHEN_SAVED = ("save_steps", "save_minutes")  # change no result: a run may go on with other ones
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\./|\.\./)[\w./@+-]*", re.ASCII)
_SPECIAL = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def plan_data(plan: Plan, comments: Comments | None = None) -> dict[str, Any]:
    """The plan as plain nested data in file order, a stage's options beside its keys.

    Defaults are left out, save those that carry a comment (somebody chose them) and those the file
    cannot do without.
    """
    return _as_map(plan, (), {flat_place(place) for place in comments or {}})


def flat_place(place: Place) -> Place:
    """A place with `options` left out, since options stand beside the stage's own keys."""
    return (
        (*place[:2], *place[3:])
        if place[:1] == ("stages",) and place[2:3] == ("options",)
        else tuple(place)
    )


def _as_map(value: Any, place: Place, commented: set[Place]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, default in defaults_of(type(value)).items():
        part, here = getattr(value, name), (*place, name)
        if name == "options":
            continue
        if isinstance(value, Plan) and name == EXTRAS:
            beside, below = stated_extras(part)
            beside |= {EXTRAS: below} if below else {}
            result |= {key: _plain_data(one, (key,), commented) for key, one in beside.items()}
            continue
        chosen = any(other[: len(here)] == here for other in commented)
        if name in ALWAYS or name == "launch" or chosen or part != default:
            result[name] = _plain_data(part, here, commented)
        # A method's own keys follow the method.
        if isinstance(value, Stage) and name == "double_quantization":
            for key, option in value.options.items():
                result[key] = _plain_data(option, (*place, key), commented)
    return result


def _plain_data(value: Any, place: Place, commented: set[Place]) -> Any:
    if isinstance(value, Struct):
        return _as_map(value, place, commented)
    if isinstance(value, Mapping):
        return {
            str(key): _plain_data(part, (*place, key), commented) for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain_data(part, (*place, index), commented) for index, part in enumerate(value)]
    return value


def plan_digest(plan: Plan, digits: int = 10) -> str:
    """Hex digits that name what is trained: model, data and stages, whichever way the same
    values were written.

    Defaults do not count, so a key that a later version adds does not rename the runs of today's
    plans. Nor does when checkpoints are written.
    """
    data = plan_data(plan)
    subject = {
        key: data.get(key) for key in ("model", "revision", "trust_remote_code", "data", "tasks")
    }
    if plan.template:
        subject["template"] = data["template"]
    stages = []
    for stage, shown in zip(plan.stages, data["stages"], strict=True):
        known = key_specs().allowed(stage.objective, stage.update)
        usual = {key: known[key].default for key in stage.options if key in known}
        usual |= {key: shown[key] for key in WHEN_SAVED if key in shown}
        stages.append(
            {key: value for key, value in shown.items() if key not in usual or value != usual[key]}
        )
    return digest(subject | {"stages": stages}, digits)


def digest(data: Any, digits: int = 10) -> str:
    """Hex digits of plain data: key order and 1 against 1.0 make no difference."""
    text = json.dumps(_canonical(data), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _canonical(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(part) for part in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_whole else value


def plan_text(plan: Plan, comments: Comments | None = None, *, name: str = "plan.yaml") -> str:
    """The launch file's text. It names nothing of this machine that the plan itself does not."""
    comments = {flat_place(place): text for place, text in (comments or {}).items()}
    can_start = plan.launch.startable and name.isprintable()
    head = f"# {HEADER}{START.format(name=shlex.quote(name)) if can_start else ''}"
    lines: Lines = []
    for key, value in plan_data(plan, comments).items():
        if key in ("data", "tasks", "stages", "launch", "origin") or (
            isinstance(value, dict) and key != "template"
        ):
            lines.append(("", ""))
        _emit(lines, f"{_text(key)}:", value, (key,), comments)
    return "\n".join([head, *_aligned(lines)]) + "\n"


def _emit(lines: Lines, start: str, value: Any, place: Place, comments: Comments) -> None:
    """Append the lines of one value, each as (text, comment), the first behind `start`."""
    comment, indent = comments.get(place, ""), " " * (len(start) - len(start.lstrip()) + 2)
    if isinstance(value, dict) and value:
        lines.append((start, comment))
        for key, part in value.items():
            _emit(lines, f"{indent}{_text(key)}:", part, (*place, key), comments)
    elif isinstance(value, list) and any(isinstance(part, dict | list) and part for part in value):
        lines.append((start, comment))
        for index, part in enumerate(value):
            _emit_item(lines, f"{indent}-", part, (*place, index), comments)
    else:
        lines.append((f"{start} {_inline(value)}", comment))


def _emit_item(lines: Lines, dash: str, value: Any, place: Place, comments: Comments) -> None:
    """The lines of an entry of a list; those of a map begin beside the dash."""
    if not isinstance(value, dict) or not value:
        _emit(lines, dash, value, place, comments)
        return
    lines += ((f"{dash[:-1]}# {line}", "") for line in comments.get(place, "").splitlines())
    inner: Lines = []
    _emit(inner, dash, value, place, {**comments, place: ""})
    first, comment = inner[1]
    lines += [(f"{dash} {first.lstrip()}", comment), *inner[2:]]


def _aligned(lines: Lines) -> list[str]:
    """The lines with a block's comments in one column; a longer line pushes out its own alone."""
    result: list[str] = []
    block: Lines = []
    for line in [*lines, ("", "")]:
        if line[0]:
            block.append(line)
            continue
        lengths = (len(text) for text, comment in block if comment)
        column = max((one for one in lengths if one <= COMMENT_COLUMN), default=0)
        for text, comment in block:
            words = " ".join("".join(one if _printable(one) else " " for one in comment).split())
            result.append(f"{text:<{column}}  # {words}" if words else text)
        if block:
            result.append("")
        block = []
    return result[:-1]


def _inline(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_inline(part) for part in value)}]"
    if isinstance(value, dict):
        return "{}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    return _text(str(value))


def _number(value: float) -> str:
    """The shortest text of the same float, with a point: YAML 1.1 reads 2e-05 as text."""
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be written into a plan")
    return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))


def _text(value: str) -> str:
    """Text, plain if no YAML reader could take it for anything else, else in double quotes."""
    if _PLAIN.fullmatch(value) and value.lower() not in _SPECIAL:
        return value
    # The reader bounds nesting by counting them.
    many_brackets = value.count("[") + value.count("{") > 20
    parts = []
    for character in value:
        code = ord(character)
        if character in '\\"':
            parts.append("\\" + character)
        elif _printable(character) and not (many_brackets and character in "[{"):
            parts.append(character)
        elif code < 0x100:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'


def _printable(character: str) -> bool:
    return character.isprintable() and character != "\ufeff"


def write_plan_file(plan: Plan, comments: Comments, path: Path, *, force: bool = False) -> None:
    """Write the launch file; data and model paths in it are relative to its own folder.

    Args:
        plan: The plan, with paths relative to the working folder.
        comments: The comment beside each value.
        path: Where to write it.
        force: Overwrite an existing launch file, and no other. One with the same content is left
            as it is.

    Raises InputError if the file may not be written there.
    """
    at, inside = f"--plan {path}", shlex.quote(str(path / PLAN_FILE))
    if path.is_dir():
        what = f"{at} is a directory; give a file name"
        raise InputError(what, where=at, hint=f"--plan {inside}")
    if not path.parent.exists():
        what = f"the directory {path.parent} does not exist"
        raise InputError(what, where=at, hint=f"mkdir -p {shlex.quote(str(path.parent))}")
    if path.exists() and not path.is_file():
        what = f"{at} is a device or a pipe; give a file name"
        raise InputError(what, where=at, hint="`advise --json` prints the plan as `plan`")
    text = plan_text(relocate(plan, Path.cwd(), path.parent), comments, name=path.name)
    there = bytes_of(path) if path.is_file() else None
    if there == text.encode():
        return
    if there is not None:
        if HEADER.encode() not in there:
            what = f"{at} exists already and is no launch file: it is never overwritten"
            raise InputError(what, where=at, hint="name another file")
        if not force:
            what = f"{at} exists already, with other content"
            raise InputError(what, where=at, hint="name another file, or add --force")
    write_atomically(path, text)


def relocate(plan: Plan, start: Path, folder: Path) -> Plan:
    """The plan as it is written into another folder: its relative paths, which begin at `start`,
    begin there, so that a project with its runs can be moved. Absolute paths, and what is no path
    here (a hub id), stay.
    """
    start, target = start.resolve(), folder.resolve()

    def moved(text: str) -> str:
        path = path_from(start, text)
        if os.path.isabs(os.path.expanduser(text)) or not path.exists():
            return text
        try:
            return os.path.relpath(path, target)
        except ValueError:  # on another drive (Windows)
            return str(path)

    return plan if start == target else with_paths(plan, moved)
