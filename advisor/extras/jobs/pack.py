"""The bundle as a folder and as an archive: the same files and bytes for the same plan and data,
whole or not there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from advisor.extras.jobs.contents import Carried, Contents, contents_of, safe_name
from advisor.extras.jobs.wheel import product_wheel, tested_versions
from advisor.extras.jobs.words import ARCHIVE, COPY_HERE, SCRIPT, Bundle, Job, readme
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.extras import extras
from advisor.ground.files import (
    PLAN_FILE,
    TEMPORARY,
    cannot_write,
    free_bytes,
    nearest_place,
    text_of,
)
from advisor.ground.units import format_gib
from advisor.plan.comments import comments_of
from advisor.plan.read import read_plan
from advisor.plan.write import plan_text

DATE_S = 315532800  # 1980-01-01, for every file of the archive: no clock in it
LONG_BYTES = 50 << 20  # packing more than that takes seconds
SUMS = "SHA256SUMS"
ELSEWHERE = "choose another place with --out"


def make_bundle(
    plan_path: Path,
    out: Path | None = None,
    *,
    say: Callable[[str], None] | None = None,
    job: Job | None = None,
) -> Bundle:
    """Write everything that a plan needs elsewhere.

    Args:
        plan_path: The plan file.
        out: A folder to be made, whose archive lies beside it, or an archive NAME.tar.gz alone;
            default: <name of the plan>-bundle in the current folder.
        say: Told before much is packed.
        job: What a scheduler reads, and how it is submitted.

    Raises InputError if the plan or a file it names cannot be used, or if `out` is there already;
    MachineNotReady if it cannot be written.
    """
    plan = read_plan(plan_path)
    ending = job.ending if job is not None else "bundle"
    only_archive = out is not None and out.name.endswith((ARCHIVE, ".tgz"))
    target = (out or Path(f"{plan.name}-{ending}")).expanduser().absolute()
    name = target.name.removesuffix(".tgz").removesuffix(ARCHIVE)
    _refuse_odd_name(name, target)
    folder = None if only_archive else target
    archive = target if only_archive else target.with_name(f"{target.name}{ARCHIVE}")
    for place in (folder, archive):
        if place is not None and os.path.lexists(place):
            raise InputError(
                f"{place} is there already, and nothing is overwritten",
                where=str(place),
                hint="remove it, or choose another name with --out",
            )
    contents = contents_of(plan, plan_path.resolve())
    written = _written_files(plan_path, contents, job)
    _refuse_full_disk(target.parent, contents, copies=1 if only_archive else 2)
    size = sum(one.size_bytes for one in contents.files if one.is_included)
    if say is not None and size > LONG_BYTES:
        say(f"Packing {format_gib(size)} ...")
    # Both are made beside their places and moved there whole.
    work = target.parent / f"{TEMPORARY}{os.getpid()}-{name}"
    packed = work.with_name(f"{work.name}{ARCHIVE}")
    try:
        if folder is not None:
            _write_folder(work, written, contents.files)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_archive(packed, name, written, contents.files)
        os.rename(packed, archive)
        if folder is not None:
            os.rename(work, folder)
    except OSError as error:
        raise cannot_write(target, error, way_out=ELSEWHERE) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return Bundle(name=name, folder=folder, archive=archive, contents=contents, job=job)


def _refuse_odd_name(name: str, target: Path) -> None:
    """Raise InputError for a name that a shell, scp or tar would take for something else."""
    if name != safe_name(name):
        raise InputError(
            f"'{name}' cannot be the name of a bundle",
            where=str(target),
            allowed="letters, digits, blanks and _ . + @ = , - with a letter or digit first",
            hint=f"such as --out {shlex.quote(safe_name(name).lstrip('_.-') or 'bundle')}",
        )


def _written_files(plan_path: Path, contents: Contents, job: Job | None = None) -> dict[str, bytes]:
    """Name -> content of the files that are made for the bundle."""
    original = text_of(plan_path)
    wheel_name, wheel = product_wheel()
    text = plan_text(contents.plan, comments_of(original, name=str(plan_path)), name=PLAN_FILE)
    script = Path(__file__).with_name(SCRIPT).read_text("utf-8")
    script = script.replace("@WHEEL@", wheel_name).replace("@DEVICE@", contents.plan.launch.device)
    installed = [
        "train",
        *(named for name in contents.plan.extras if (named := extras()[name].INSTALLS)),
    ]
    script = script.replace("[train]", f"[{','.join(installed)}]")
    product = {f"advise/{wheel_name}": wheel, "advise/constraints.txt": tested_versions()}
    # The plan may be edited on the other machine, and the script too: they have no sums.
    sums = {SUMS: _sums(_digests(product) | _sums_of(contents, included=True))}
    left = _sums_of(contents, included=False)
    return {
        PLAN_FILE: text.encode(),
        SCRIPT: script.encode(),
        "README.txt": readme(contents, job).encode(),
        **{name: text.encode() for name, text in (job.files if job is not None else {}).items()},
        **product,
        **sums,
        **({COPY_HERE: _sums(left)} if left else {}),
    }


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _sums_of(contents: Contents, *, included: bool) -> dict[str, str]:
    return {one.name: one.sha256 for one in contents.files if one.is_included == included}


def _sums(digests: Mapping[str, str]) -> bytes:
    """Lines as sha256sum writes and reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


# --------------------------------------------------------------------------- writing


def _refuse_full_disk(place: Path, contents: Contents, *, copies: int) -> None:
    need = copies * sum(one.size_bytes for one in contents.files if one.is_included)
    free = free_bytes(place)
    if free < need + (64 << 20):
        raise MachineNotReady(
            f"{format_gib(free)} free on the disk, the bundle may take {format_gib(need)}",
            where=str(nearest_place(place)),
            hint=f"free some space, or {ELSEWHERE}",
        )


def _mode(name: str) -> int:
    return 0o755 if name == SCRIPT else 0o644


def _write_folder(folder: Path, written: Mapping[str, bytes], files: list[Carried]) -> None:
    for name, content in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(_mode(name))
    for one in files:
        path = folder / one.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if one.is_included:
            with _checked(one) as file, path.open("xb") as copy:
                shutil.copyfileobj(file, copy)


class _Summed:
    """A file that is read once, with the digest of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        found = self._file.read(size)
        self.digest.update(found)
        return found


@contextmanager
def _checked(one: Carried) -> Iterator[_Summed]:
    """The content of a file. Raises InputError if it is another one than when it was looked at."""
    try:
        with one.source.open("rb") as file:
            summed = _Summed(file)
            yield summed
            is_same = not file.read(1) and summed.digest.hexdigest() == one.sha256
    except OSError:
        if one.source.is_file() and one.source.stat().st_size == one.size_bytes:
            raise  # the bundle cannot be written
        is_same = False
    if not is_same:
        raise InputError(
            "the file changed while it was packed",
            where=str(one.source),
            hint="export it again once nobody writes it",
        )


def _write_archive(
    path: Path, name: str, written: Mapping[str, bytes], files: list[Carried]
) -> None:
    """A tar file without owners, times or the order of a disk in it."""
    sources: dict[str, bytes | Carried] = {**written}
    sources |= {one.name: one for one in files if one.is_included}
    with (
        path.open("xb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for inner, source in sorted(sources.items()):
            entry = tarfile.TarInfo(f"{name}/{inner}")
            entry.mode, entry.mtime = _mode(inner), DATE_S
            if isinstance(source, bytes):
                entry.size = len(source)
                archive.addfile(entry, io.BytesIO(source))
            else:
                entry.size = source.size_bytes
                with _checked(source) as file:
                    archive.addfile(entry, file)
