"""What a run was made of and what came of it, as digests: written when it is done, and compared by
`advise check RUN`, which reads every file again, whatever its times say.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.errors import AdviseError, Fault
from advisor.ground.files import PLAN_FILE, shown_path
from advisor.launch.earlier import Inputs, changes_of, files_of, place_of, read_inputs
from advisor.launch.prepare import PlanRun
from advisor.plan.entries import entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.plan.write import plan_digest
from advisor.record.content import Contents, FileContent, digest_of, read_contents
from advisor.record.run import Identity, RunRecord, last_of_each_task

SAME, CHANGED, MISSING = "same", "changed", "missing"
PLAN, ROWS, BASE, RESULT, VERSIONS = "plan", "rows", "base", "result", "versions"
PARTS = (PLAN, ROWS, BASE, RESULT)  # whatever is not as it was there, the run is another one
HAPPENED = {CHANGED: ("has changed", "have changed"), MISSING: ("is gone", "are gone")}
SHOWN = 3  # files of a part that are named
PART_OF = {"model": BASE, "data": ROWS, "file": PLAN}  # first word of an input's name
IN_WORDS = {PLAN: "the plan", ROWS: "the rows", BASE: "the base model", RESULT: "the result"}


def with_identity(run: PlanRun, record: RunRecord) -> RunRecord:
    """The record of a run that is done, with its identity. A model may have come from the hub since
    the run began: its files are read now.
    """
    inputs = record.input_files
    with suppress(AdviseError):  # then what could be read before it is what is known
        inputs = {**read_inputs(run, inputs), **inputs}
    seeds = {entry.stage.seed for entry in entries(run.copy)}
    digests: Mapping[str, Any] = _digests(run.copy, inputs, _results(record))
    seed = seeds.pop() if len(seeds) == 1 else None
    identity = Identity(**digests, seed=seed, versions=record.versions)
    return replace(record, input_files=inputs, identity=identity)


class Verified(Struct, frozen=True, kw_only=True):
    """What is still as it was when the run ended."""

    words: Mapping[str, str]  # plan, rows, base, result, versions -> same, changed or missing
    why: Mapping[str, str]  # part -> what differs
    faults: tuple[Fault, ...]  # of what makes it another run
    read_bytes: int
    duration_s: float


def verify(folder: Path, record: RunRecord) -> Verified | None:
    """Compare a run with its `identity`; None if run.json has none."""
    began_s, known = time.monotonic(), record.identity
    if known is None:
        return None
    said: dict[str, list[str]] = {part: [] for part in (*PARTS, VERSIONS)}
    gone: set[str] = set()
    plan = None
    try:
        plan = read_plan(folder / PLAN_FILE)
    except AdviseError as error:
        if not (folder / PLAN_FILE).is_file():
            gone.add(PLAN)
        said[PLAN].append(error.faults[0].headline)
    last = record.stages[-1] if record.stages else None
    model = str(record.base_model(last) if last is not None else record.model)
    model = plan.model if plan is not None else model
    revision = plan.revision if plan is not None else None
    inputs: dict[str, Contents] = {}
    for key, before in record.input_files.items():
        first, _, path = key.partition(" ")
        if (part := PART_OF.get(first)) is not None:
            now, why = _read(lambda: files_of(key, path or model, folder, revision))  # noqa: B023
            inputs[key] = now
            said[part] += [why] if why else changes_of(place_of(folder, key, model), before, now)
            gone |= {part} if before.keys() - now.keys() else set()
    before = _results(record)
    files = {name: folder / name for name in before}
    now, why = _read(lambda: {name: path for name, path in files.items() if path.is_file()})
    said[RESULT] += [why] if why else changes_of(folder, before, now)
    gone |= {RESULT} if before.keys() - now.keys() else set()
    digests = _digests(plan, inputs, now)
    words = {}
    for part in PARTS:
        is_same = digests[part] == getattr(known, part) is not None
        is_gone = part in gone or (digests[part] is None and part != PLAN)
        words[part] = MISSING if is_gone else CHANGED
        words[part] = SAME if is_same and not is_gone else words[part]
        if not is_same and not said[part]:
            said[part] = ["run.json does not say what it was"]
            if getattr(known, part):
                said[part] = ["other values" if part == PLAN else "another digest in run.json"]
    words[VERSIONS], said[VERSIONS] = _versions(known.versions)
    shown = {part: _shown(said[part]) for part in said if words[part] != SAME}
    return Verified(
        words=words,
        why=shown,
        faults=tuple(_faults(folder, words, shown)),
        read_bytes=sum(one.bytes for held in (*inputs.values(), now) for one in held.values()),
        duration_s=time.monotonic() - began_s,
    )


def _digests(plan: Plan | None, inputs: Inputs, results: Contents) -> dict[str, str | None]:
    found: dict[str, dict[str, FileContent]] = {part: {} for part in PARTS}
    for key, held in inputs.items():
        if (part := PART_OF.get(key.partition(" ")[0])) is not None:
            found[part] |= {f"{key}/{one}": held[one] for one in held}
    if plan is not None:
        found[PLAN][PLAN_FILE] = FileContent(bytes=0, sha256=plan_digest(plan, 64))
    else:
        found[PLAN].clear()
    found[RESULT] |= results
    return {part: digest_of(held) if held else None for part, held in found.items()}


def _results(record: RunRecord) -> dict[str, FileContent]:
    return {
        f"{stage.folder}/{name}": FileContent(bytes=saved.bytes, sha256=saved.sha256)
        for stage in last_of_each_task(record.stages)
        for name, saved in (stage.files or {}).items()
    }


def _read(find: Callable[[], Mapping[str, Path]]) -> tuple[Contents, str]:
    """(what the files hold, why they cannot be read)."""
    try:
        return read_contents(find()), ""
    except AdviseError as error:
        return {}, error.faults[0].headline
    except (OSError, ValueError) as error:  # a name that no file can have
        return {}, str(getattr(error, "strerror", None) or error)


def _shown(said: list[str]) -> str:
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more


def _versions(known: Mapping[str, str | None]) -> tuple[str, list[str]]:
    from importlib.metadata import PackageNotFoundError, version

    word, said = SAME if known else MISSING, []
    for name, before in known.items():
        try:
            now = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            word = MISSING
            said.append(f"{name} {before} then, none now")
        else:
            if now != before:
                word = word if word == MISSING else CHANGED
                said.append(f"{name} {before} then, {now} now")
    return word, said


def _faults(folder: Path, words: Mapping[str, str], why: Mapping[str, str]) -> Iterator[Fault]:
    for part in PARTS:
        if words[part] != SAME:
            happened = HAPPENED[words[part]][part == ROWS]
            what = f"{IN_WORDS[part]} {happened} since the run ended: {why[part]}"
            hint = "put the old files back: a run is what `identity` in its run.json says"
            yield Fault(where=shown_path(folder), what=what, hint=hint)
