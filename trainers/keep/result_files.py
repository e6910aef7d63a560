"""The files of a stage's result: written whole, on the disk before anything says that they are."""

from __future__ import annotations

from pathlib import Path

from advisor.ground.files import DISK, Disk
from advisor.record.stage import SavedFile


def put_result(unfinished: Path, folder: Path, *, disk: Disk = DISK) -> dict[str, SavedFile]:
    """Move the files of a result into the stage's folder; each of them with its size and hash.

    Raises OSError as the system does.

    Args:
        unfinished: A folder inside the stage's, which holds the files and is removed.
        folder: The stage's folder.
    """
    disk.sync_tree(unfinished)
    files = {
        name: SavedFile(bytes=disk.size(unfinished / name), sha256=disk.digest(unfinished / name))
        for name in disk.files(unfinished)
    }
    for name in disk.names(unfinished):
        if (folder / name).is_dir():  # of an earlier attempt: a rename replaces files alone
            disk.remove(folder / name)
        disk.rename(unfinished / name, folder / name)
    for place in (folder, *folder.parents[:3]):  # the names of the folders may be new, too
        disk.sync(place)
    disk.remove(unfinished)
    return files
