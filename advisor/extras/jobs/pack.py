"""The bundle as a folder and as an archive, whole or not there, with the same bytes for the same
plan and data; and what is said of it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shlex
import shutil
import tarfile
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.export.exporter import ExportRequest
from advisor.extras.jobs.contents import Contents, safe_name, source_files
from advisor.extras.jobs.needs import JobNeeds, plan_needs
from advisor.ground.errors import InputError
from advisor.ground.extras import extras
from advisor.ground.files import PLAN_FILE, TEMPORARY, cannot_write, text_of
from advisor.ground.progress import waiting
from advisor.ground.resources import PACKAGE, resource_root
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from advisor.plan.comments import comments_of
from advisor.plan.read import read_plan
from advisor.plan.write import plan_text
from advisor.record.content import file_digest

ARCHIVE = ".tar.gz"
SCRIPT = "run.sh"
COPY_HERE = "COPY_HERE.sha256"
DATE_S = 315532800  # 1980-01-01, for every file of the archive: no clock in it
WIDTH = 78  # of what is said on the screen and in comments
MADE = ("advisor/_bundled/", "rules/schema/")  # by a build


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerJob:
    """What makes a bundle one for a scheduler."""

    ending: str  # of the bundle's name where none was chosen
    files: Mapping[str, str]  # name -> text of what the scheduler reads
    about: Sequence[str]  # what was chosen and what is not known, line by line
    where: str  # "On the cluster": where the commands are typed
    is_copied: bool  # the archive is copied there first
    commands: Sequence[str]  # to be typed in the folder
    facts: Mapping[str, Any]  # the same as JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle that was written."""

    name: str
    folder: Path | None  # None: the archive alone was wanted
    archive: Path
    contents: Contents
    job: SchedulerJob | None

    @property
    def places(self) -> list[Path]:
        return [self.archive] if self.folder is None else [self.folder, self.archive]

    def lines(self, here: Path) -> list[str]:
        """What was written, what is not in it, and how it is used."""
        written = " and ".join(_short(place, here) for place in self.places)
        size = self.archive.stat().st_size / 1e6
        archive, packed = shlex.quote(_short(self.archive, here)), shlex.quote(self.archive.name)
        enter = f"cd {shlex.quote(self.name)}"
        copied = [f"scp {archive} HOST:", f"tar xzf {packed} && {enter}"]
        about: Sequence[str] = ()
        if self.job is None:
            where = "On the GPU machine (Linux, Python 3.11 or later)"
            script = shlex.quote(f"{self.name}/{SCRIPT}")
            commands = [copied[0], f"tar xzf {packed} && bash {script}"]
        else:
            where, about = self.job.where, self.job.about
            unpacked = [f"tar xzf {archive}", enter]
            if self.folder is not None:
                unpacked = [f"cd {shlex.quote(_short(self.folder, here))}"]
            commands = [*(copied if self.job.is_copied else unpacked), *self.job.commands]
        return [
            f"Wrote {written} ({size:,.1f} MB packed).",
            *_not_carried(self.contents, from_here=True),
            *about,
            f"{where}:",
            *(f"  {line}" for line in commands),
        ]


def write_bundle(
    wanted: ExportRequest,
    job_of: Callable[[JobNeeds], SchedulerJob] | None = None,
    *,
    gpu: str | None = None,
) -> int:
    """Write the bundle of a plan file, with a job that is estimated on the named GPU, else on that
    of the plan, and say how it is used. Returns the exit code. Raises InputError for a job that
    `advise run` would not start.
    """
    if wanted.only is not None:
        each = "of a plan with tasks, each task is a job of its own"
        raise InputError(
            "--only has no effect on a bundle: it carries the whole plan",
            hint=each if job_of else f"on the other machine: bash {SCRIPT} --only NAME",
        )
    plan = read_plan(wanted.source)
    job = job_of(plan_needs(plan, wanted.source, gpu=gpu)) if job_of else None
    bundle = make_bundle(wanted.source, wanted.out, job=job)
    for line in bundle.lines(Path.cwd()):
        wanted.say(line)
    wanted.document["written"] = [str(place) for place in bundle.places]
    wanted.document["not_carried"] = _not_carried(bundle.contents, from_here=True)
    if job is not None:
        wanted.document["job"] = dict(job.facts)
    return 0


def make_bundle(
    plan_path: Path, out: Path | None = None, *, job: SchedulerJob | None = None
) -> Bundle:
    """Write a folder with its archive, or the archive alone. Raises InputError, MachineNotReady."""
    plan = read_plan(plan_path)
    target = (out or Path(f"{plan.name}-{job.ending if job else 'bundle'}")).expanduser().absolute()
    name = target.name.removesuffix(".tgz").removesuffix(ARCHIVE)
    if name != safe_name(name):
        raise InputError(  # a shell, scp or tar would take it for something else
            f"'{name}' cannot be the name of a bundle",
            where=str(target),
            allowed="letters, digits, blanks and _ . + @ = , - with a letter or digit first",
            hint=f"such as --out {shlex.quote(safe_name(name).lstrip('_.-') or 'bundle')}",
        )
    folder = target if name == target.name else None
    archive = target.with_name(f"{name}{ARCHIVE}") if folder else target
    for place in (target, archive):
        if os.path.lexists(place):
            raise InputError(
                f"{place} is there already, and nothing is overwritten",
                where=str(place),
                hint="remove it, or choose another name with --out",
            )
    contents = Contents(plan, plan_path)
    written = _written_files(plan_path, contents, job)
    # Both are made beside their places and moved there whole.
    work = target.parent / f"{TEMPORARY}{os.getpid()}-{name}"
    packed = work.with_name(f"{work.name}{ARCHIVE}")
    try:
        with waiting(f"packing {name}"):
            _write_folder(work, written, contents)
            _write_archive(packed, name, work)
        os.rename(packed, archive)
        if folder is not None:
            os.rename(work, folder)
    except OSError as error:
        raise cannot_write(target, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return Bundle(name=name, folder=folder, archive=archive, contents=contents, job=job)


def product_files() -> dict[str, bytes]:
    """Name -> content of the source tree of the running version, a checkout or an installation."""
    root = resource_root()
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    beside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    found = source_files(PACKAGE.parent, [PACKAGE.name]) | source_files(root, beside)
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(MADE)}


def _written_files(
    plan_path: Path, contents: Contents, job: SchedulerJob | None
) -> dict[str, bytes]:
    """Name -> content of the files that are made for the bundle."""
    comments = comments_of(text_of(plan_path), name=str(plan_path))
    needed = ("train", *(extras()[name].INSTALLS for name in contents.plan.extras))
    script = fill_template(SCRIPT, {"DEVICE": contents.plan.launch.device})
    product = {f"advise/{name}": content for name, content in product_files().items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in product.items()}
    texts = {
        PLAN_FILE: plan_text(contents.plan, comments, name=PLAN_FILE),
        SCRIPT: script.replace("[train]", f"[{','.join(filter(None, needed))}]"),
        "README.txt": _readme(contents, job),
        # The plan may be edited on the other machine, and the script too: they have no sums.
        "SHA256SUMS": _sums(digests | contents.sums),
        **(job.files if job else {}),
    }
    if contents.left:
        texts[COPY_HERE] = _sums(contents.left_sums)
    return product | {name: text.encode() for name, text in texts.items()}


def _sums(digests: Mapping[str, str]) -> str:
    """Lines as sha256sum writes and reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def _write_folder(folder: Path, written: Mapping[str, bytes], contents: Contents) -> None:
    for name in (*written, *contents.files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (folder / name).write_bytes(content)
    (folder / SCRIPT).chmod(0o755)
    for name, source in contents.files.items():
        if source.is_file():
            shutil.copyfile(source, folder / name)
        if not (folder / name).is_file() or file_digest(folder / name) != contents.sums[name]:
            raise InputError(
                "the file changed while it was packed",
                where=str(source),
                hint="export it again once nobody writes it",
            )


def _write_archive(path: Path, name: str, folder: Path) -> None:
    """A tar file without owners, times or the order of a disk in it."""
    inside = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    with (
        path.open("xb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for inner, source in sorted(inside.items()):
            if source.is_file():
                entry = tarfile.TarInfo(f"{name}/{inner}")
                entry.mode, entry.mtime = 0o755 if inner == SCRIPT else 0o644, DATE_S
                entry.size = source.stat().st_size
                with source.open("rb") as file:
                    archive.addfile(entry, file)


def _readme(contents: Contents, job: SchedulerJob | None) -> str:
    """What the bundle is and how it is used."""
    plan = contents.plan
    kind = {"cuda": "NVIDIA", "rocm": "AMD", "mps": "Apple"}.get(plan.launch.device)
    gpus, machines = plan.launch.processes, plan.launch.nodes
    each = f", {machines} machines each with" if machines > 1 else ","
    count = f"an {kind} GPU" if gpus == 1 else f"{gpus} {kind} GPUs"
    start = [
        f"Start (in tmux or screen: closing the terminal saves and stops):  bash {SCRIPT}",
        f"Resume after Ctrl-C, a crash or a restart:  bash {SCRIPT}",
    ]
    if job is not None:
        start = [f"Submit:  {line}" for line in job.commands]
    elif machines > 1:
        start[0] = (
            "Start on every machine, in this folder, which they share, with NODE_RANK=0, 1, ...:"
            f"  NNODES={machines} MASTER_ADDR=THE_FIRST NODE_RANK=0 bash {SCRIPT}"
        )
    what = plan.origin.composition or " > ".join(stage.objective for stage in plan.stages)
    return fill_template(
        "readme.txt",
        {
            "NAME": plan.name,
            "WHAT": what,
            "MODEL": plan.model,
            "START": "\n".join(start),
            "DEVICE": f"{each} {count}" if kind else "",
            "MORE": "".join(f"{line}\n" for line in _not_carried(contents)),
        },
    )


def _not_carried(contents: Contents, *, from_here: bool = False) -> list[str]:
    """What is needed and not in the bundle; where it lies here is said here alone."""
    from advisor.situation.models import model_shape

    lines = []
    for what, name in contents.fetched:
        shape = model_shape(name)[0] if what == "model" else None  # as the catalogue knows it
        licence = shape.license if shape is not None else None
        is_gated = shape is not None and bool(shape.gated)
        known = f" (licence {licence})" if licence else ""
        lines.append(f"Not in it: {what} {name}{known}, which is downloaded there.")
        if is_gated or (what == "model" and not licence):
            first = "Its licence" if is_gated else "If it asks for a licence, that"
            page = f"https://huggingface.co/{name}"
            lines.append(f"  {first} must be accepted at {page}; then set HF_TOKEN there.")
    for place, source, size in contents.left:
        origin = f" from {source}" if from_here else ""
        lines += [
            f"Not in it: {place}, {format_gib(size)}, which is too large.",
            f"  Copy or link it there{origin}; {COPY_HERE} has its SHA-256.",
        ]
    return [*lines, *contents.notes]


def _short(path: Path, here: Path) -> str:
    """The path as short as it can be typed from here."""
    if not path.is_relative_to(here.resolve()):
        return str(path)
    short = os.path.relpath(path, here)
    # scp and tar take '-a' for options and 'a:b' for another machine.
    return f"./{short}" if short.startswith("-") or ":" in short else short


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """A text of this folder with @NAME@ replaced by values."""
    text = Path(__file__).with_name(template).read_text("utf-8")
    for name, value in {"VERSION": __version__, **values}.items():
        text = text.replace(f"@{name}@", value)
    return text


def as_comments(lines: Iterable[str]) -> str:
    """The lines as comments of a script, none wider than a screen."""
    return "\n".join(f"# {line}" for line in wrapped(lines))


def wrapped(lines: Iterable[str]) -> list[str]:
    """The lines, none wider than a screen; what goes on is set further in."""
    found = []
    for line in lines:
        inner = " " * (len(line) - len(line.lstrip()) + 4)
        found += textwrap.wrap(
            line, WIDTH, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
        )
    return found
