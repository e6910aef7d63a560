"""Whether the results of finished stages are still what the trainers saved.

A finished run says so only after this check, and no stage starts from a damaged result.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from advisor.ground.content import ADAPTER_CONFIG, file_digest
from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.files import text_of
from advisor.ground.safetensors_header import Damaged, read_header
from advisor.launch.base_paths import is_half_corrected
from advisor.launch.folder import is_done
from advisor.plan.entries import Entry
from advisor.plan.record import RunRecord, SavedFile, StageRecord

# Up to this size all results together are read at each call: under 2 s on one core. Of larger ones,
# the files that were written or moved since their stage finished are read.
READ_ALWAYS_BYTES = 2 * 2**30
# Files that people adapt to how they use a result: a change is told, and refused only if the file
# cannot be read any more.
ADAPTED = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
CONFIGS = (ADAPTER_CONFIG, "config.json")


def check_results(
    record: RunRecord,
    names: Iterable[str],
    folder: Path,
    *,
    shown_folder: str,
    corrected: Mapping[str, bytes],
) -> list[str]:
    """What was changed in results and does no harm, in words.

    Raises InputError, with each file and the way to train its stage again, if a result is damaged.

    Args:
        names: The finished stages to check.
        folder: The run folder.
        shown_folder: It, as it can be typed.
        corrected: Stage -> its adapter_config.json with the present place of the base.
    """
    stages = [stage for name in names if (stage := record.stage(name)) is not None]
    total = sum(saved.bytes for stage in stages for saved in (stage.files or {}).values())
    faults, warnings = [], []
    for stage in stages:
        place = folder / "stages" / stage.name
        for name, what, is_harmless in _differences(stage, place, total <= READ_ALWAYS_BYTES):
            if name == ADAPTER_CONFIG and is_half_corrected(stage, corrected):
                continue  # it will be written
            if is_harmless:
                warnings.append(f"{shown_folder}/stages/{stage.name}/{name} {what}")
            else:
                faults.append(_fault(stage, name, what, place, shown_folder))
    if faults:
        raise InputError(faults=faults)
    return warnings


def _fault(stage: StageRecord, name: str, what: str, place: Path, shown_folder: str) -> Fault:
    run = shlex.quote(shown_folder)
    result = f"{run}/stages/{stage.name}"
    has_checkpoints = any((place / "checkpoints").glob("checkpoint-*"))
    start = "from its last checkpoint" if has_checkpoints else "from the beginning"
    return Fault(
        what=(
            f"{shown_folder}/stages/{stage.name}/{name} {what}: the result of stage {stage.name} is"
            " damaged"
        ),
        allowed="put a copy of the file back if you have one",
        hint=f"or train the stage again {start}: rm {result}/*.safetensors && advise run {run}",
    )


def _differences(
    stage: StageRecord, place: Path, read_all: bool
) -> Iterable[tuple[str, str, bool]]:
    """(file, what is wrong with it, whether that does no harm)."""
    if stage.files is None:  # a version before 0.2 trained it: what can be seen without a hash
        yield from ((name, what, False) for name, what in _unreadable(place))
        return
    for name, saved in stage.files.items():
        what = _difference(place / name, saved, read_all, _finished_ns(stage))
        if what is not None:
            is_harmless = name in ADAPTED and _is_readable(place / name)
            yield name, "was changed after the training" if is_harmless else what, is_harmless


def _difference(path: Path, saved: SavedFile, read_all: bool, finished_ns: int) -> str | None:
    """What is wrong with a file of a result; None if it is as it was saved."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found.st_size != saved.bytes:
        return f"has {found.st_size:,} bytes and had {saved.bytes:,} when it was saved"
    if not read_all and max(found.st_mtime_ns, found.st_ctime_ns) <= finished_ns:
        return None
    try:
        digest = file_digest(path, sample=False).sha256
    except AdviseError as error:
        return f"cannot be read ({error.faults[0].headline})"
    return None if digest == saved.sha256 else "has other content than when it was saved"


def _finished_ns(stage: StageRecord) -> int:
    """The end of the second in which the stage finished; 0 if that is not known."""
    with suppress(ValueError, OverflowError):
        return (int(datetime.fromisoformat(str(stage.finished_at)).timestamp()) + 1) * 10**9
    return 0


def _unreadable(place: Path) -> Iterable[tuple[str, str]]:
    """Weights that are cut off, and configurations that are no JSON objects."""
    for path in sorted(place.glob("*.safetensors")):
        try:
            read_header(path)
        except (Damaged, OSError) as damage:
            yield path.name, str(damage)
    for name in CONFIGS:
        if (place / name).exists() and not _is_readable(place / name):
            yield name, "holds no JSON object"


def _is_readable(path: Path) -> bool:
    """Whether a JSON file holds an object, or a text file is text."""
    try:
        text = text_of(path)
        return path.suffix != ".json" or isinstance(json.loads(text), dict)
    except (OSError, ValueError, RecursionError):
        return False


def results_it_rests_on(
    record: RunRecord | None, selected: Sequence[Entry], folder: Path
) -> list[str]:
    """The finished stages that a call rests on: those it was asked for, and those that the others
    start from or are scored by.
    """
    done = {entry.name for entry in selected if is_done(record, entry.name, folder)}
    needed = [name for entry in selected if entry.name not in done for name in entry.needs]
    done |= {name for name in needed if is_done(record, name, folder)}
    return [
        name
        for name in dict.fromkeys([*(entry.name for entry in selected), *needed])
        if name in done
    ]
