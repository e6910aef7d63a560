"""Checkpoints for the fuzzer: two whole ones, the newer with a mutated file, read by the store."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from trainers.keep.checkpoint_store import COMPLETE, CheckpointStore, Dependencies

FOLDER = "checkpoints"
STEPS = (3, 6)
RANDOM_STATE = "random_state_0.safetensors"
FILES = {
    "adapter_model.safetensors": b"weights of step %d " * 20,
    RANDOM_STATE: b'{"map": [[{"value": "python"}, {"value": %d}]]}',
    "trainer_state.json": b'{"global_step": %d, "log_history": [{"loss": 1.5}], "epoch": 0.5}',
}


def store_in(folder: Path) -> CheckpointStore:
    """The store of the checkpoints below a folder."""
    parts = {"base_model": "b", "rows": "r"}
    settings = {"learning_rate": 1e-4, "seed": 42}
    return CheckpointStore(
        folder / FOLDER, Dependencies(parts=parts, settings=settings), {"torch": "2.13.0"}
    )


@cache
def written() -> dict[str, bytes]:
    """The files of both checkpoints, named from the folder above."""
    with tempfile.TemporaryDirectory() as name:
        one = store_in(Path(name))
        for step in STEPS:
            place = one.begin(step)
            for file, content in FILES.items():
                (place / file).write_bytes(content.replace(b"%d", str(step).encode()))
            one.complete(step, {"steps": 9, "learning_rate": 1e-4, "epoch": 0.5})
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in one.folder.rglob("*")
            if path.is_file()
        }


def records() -> list[dict[str, Any]]:
    """complete.json of both."""
    files = written()
    return [json.loads(files[f"{FOLDER}/checkpoint-{step}/{COMPLETE}"]) for step in reversed(STEPS)]


def read() -> None:
    """Look for the newest checkpoint; exit code 1 for one that was not written so."""
    from advisor.ground.errors import AdviseError

    try:
        found = store_in(Path()).newest(print)
    except AdviseError as error:
        print(error.text())
        raise SystemExit(error.exit_code) from None
    if found is None:
        raise SystemExit("both checkpoints were refused, and one is sound")
    for file, content in FILES.items():
        assert (found.path / file).read_bytes() == content.replace(b"%d", str(found.step).encode())
    assert found.record["steps"] == 9
