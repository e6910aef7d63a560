"""The bundle as a folder and as an archive, whole or not there, with the same bytes for the same
plan and data; and what is said of it.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import tarfile
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.export.exporter import ExportRequest
from advisor.extras.jobs.contents import Contents, safe_name, source_files
from advisor.extras.jobs.needs import JobNeeds, plan_needs
from advisor.ground.errors import InputError
from advisor.ground.extras import extras
from advisor.ground.files import (
    KEPT,
    PLAN_FILE,
    TEMPORARY,
    cannot_write,
    free_path,
    open_regular,
    shown_path,
    text_of,
)
from advisor.ground.progress import waiting
from advisor.ground.resources import PACKAGE, resource_root
from advisor.ground.version import __version__
from advisor.plan.comments import comments_of
from advisor.plan.read import read_plan
from advisor.plan.write import plan_text
from advisor.record.content import file_digest
from advisor.situation.models import model_shape

ARCHIVE = ".tar.gz"
TWO = ("", ARCHIVE)  # what a bundle is: a folder and its archive
SCRIPT = "run.sh"
DATE_S = 315532800  # 1980-01-01, for every file of the archive: no clock in it
WIDTH = 78  # of what is said on the screen and in comments
MADE = ("advisor/_bundled/", "rules/schema/")  # by a build


class SchedulerJob(Struct, frozen=True, kw_only=True):
    """What makes a bundle one for a scheduler."""

    ending: str  # of the bundle's name where none was chosen
    files: Mapping[str, str]  # name -> text of what the scheduler reads
    about: Sequence[str]  # what was chosen and what is not known, line by line
    where: str  # "On the cluster": where the commands are typed
    is_copied: bool  # the archive is copied there first
    commands: Sequence[str]  # to be typed in the folder
    facts: Mapping[str, Any]  # the same as JSON


class Bundle(Struct, frozen=True, kw_only=True):
    """A bundle that was written."""

    name: str
    folder: Path | None  # None: the archive alone was wanted
    archive: Path
    not_carried: Sequence[str]
    device: str  # that the plan trains on
    job: SchedulerJob | None
    kept: Sequence[Path] = ()  # what had the name that was asked for

    @property
    def places(self) -> list[Path]:
        return [self.archive] if self.folder is None else [self.folder, self.archive]

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is used."""
        size, job = self.archive.stat().st_size / 1e6, self.job
        archive, packed = shlex.quote(shown_path(self.archive)), shlex.quote(self.archive.name)
        enter = f"cd {shlex.quote(self.name)}"
        where = f"On the {_machine(self.device)}, Python 3.11 or later)"
        commands = [f"scp {archive} HOST:", f"tar xzf {packed} && {enter}"]
        if job is None:
            commands[1] = f"tar xzf {packed} && bash {shlex.quote(f'{self.name}/{SCRIPT}')}"
        else:
            where = job.where
            if not job.is_copied:
                commands = [
                    f"tar xzf {archive} && {enter}"
                    if self.folder is None
                    else f"cd {shlex.quote(shown_path(self.folder))}"
                ]
            commands += job.commands
        return [
            *(KEPT.format(shown_path(one)) for one in self.kept),
            f"Wrote {' and '.join(map(shown_path, self.places))} ({size:,.1f} MB packed).",
            "Your data are inside as they are: whoever gets it can read them.",
            *self.not_carried,
            *(job.about if job else ()),
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
            hint=each if job_of else f"`bash {SCRIPT}` takes --only on the other machine",
        )
    plan = read_plan(wanted.source)
    job = job_of(plan_needs(plan, wanted.source, gpu=gpu)) if job_of else None
    bundle = make_bundle(wanted.source, wanted.out, job=job)
    for line in bundle.lines():
        wanted.say(line)
    wanted.document["written"] = [str(place) for place in bundle.places]
    wanted.document["not_carried"] = list(bundle.not_carried)
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
    ending = target.name.removeprefix(name)

    def there(place: Path) -> list[Path]:
        """What stands in the places of a bundle of that name."""
        both = (place.with_name(f"{place.name}{one}") for one in ([ending] if ending else TWO))
        return [one for one in both if os.path.lexists(one)]

    kept = there(target.with_name(name))
    free = free_path(target.with_name(name), lambda place: bool(there(place)))
    target, name = free.with_name(f"{free.name}{ending}"), free.name
    folder = None if ending else target
    archive = target.with_name(f"{name}{ARCHIVE}") if folder else target
    contents = Contents(plan, plan_path)
    not_carried = [line for one in contents.fetched for line in _fetched_there(*one)]
    not_carried += contents.notes
    # Both are made beside their places and moved there whole.
    work = target.parent / f"{TEMPORARY}{os.getpid()}-{name}"
    packed = work.with_name(f"{work.name}{ARCHIVE}")
    try:
        with waiting(f"packing {name}"):
            _write_folder(work, plan_path, contents, job, not_carried)
            _write_archive(packed, name, work)
        os.rename(packed, archive)
        if folder is not None:
            os.rename(work, folder)
    except OSError as error:
        raise cannot_write(target, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return Bundle(
        name=name, folder=folder, archive=archive, not_carried=not_carried,
        device=plan.launch.device, job=job, kept=kept,
    )  # fmt: skip


def _machine(device: str) -> str:
    """'GPU machine (Linux', what trains on this device."""
    return {"mps": "Mac (macOS", "cpu": "other machine (Linux"}.get(device, "GPU machine (Linux")


def product_files() -> dict[str, Path]:
    """Name -> file of the source tree of the running version, a checkout or an installation."""
    root = resource_root()
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    beside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    found = source_files(PACKAGE.parent, [PACKAGE.name]) | source_files(root, beside)
    return {name: path for name, path in found.items() if not name.startswith(MADE)}


def _write_folder(
    folder: Path,
    plan_path: Path,
    contents: Contents,
    job: SchedulerJob | None,
    not_carried: Sequence[str],
) -> None:
    copied = {f"advise/{name}": path for name, path in product_files().items()} | contents.files
    for name, source in copied.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_unchanged(source, folder / name)
    # The plan may be edited on the other machine, and the script too: they have no sums.
    comments = comments_of(text_of(plan_path), name=str(plan_path))
    has_excel = any(str(name).lower().endswith(".xlsx") for name in contents.files)
    needed = (
        *("train", "office" if has_excel else ""),
        *(extras()[name].INSTALLS for name in contents.plan.extras),
    )
    script = fill_template(SCRIPT, {"DEVICE": contents.plan.launch.device})
    texts = {
        PLAN_FILE: plan_text(contents.plan, comments, name=PLAN_FILE),
        SCRIPT: script.replace("[train]", f"[{','.join(filter(None, needed))}]"),
        "README.txt": _readme(contents, job, not_carried),
        "SHA256SUMS": "".join(f"{file_digest(folder / name)}  {name}\n" for name in sorted(copied)),
        **(job.files if job else {}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    (folder / SCRIPT).chmod(0o755)


def _copy_unchanged(source: Path, place: Path) -> None:
    """Copy a file. Raises InputError if it changed meanwhile or is gone."""
    try:
        before = source.stat()
        shutil.copyfile(source, place)
        after = source.stat()
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    except FileNotFoundError:
        same = False
    if not same:
        hint = "export it again once nobody writes it"
        raise InputError("the file changed while it was packed", where=str(source), hint=hint)


def _write_archive(path: Path, name: str, folder: Path) -> None:
    """A tar file without owners, times or the order of a disk in it."""
    with (
        path.open("xb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for source in sorted(one for one in folder.rglob("*") if one.is_file()):
            entry = tarfile.TarInfo(f"{name}/{source.relative_to(folder).as_posix()}")
            entry.mode, entry.mtime = 0o755 if source.name == SCRIPT else 0o644, DATE_S
            entry.size = source.stat().st_size
            with open_regular(source) as file:
                archive.addfile(entry, file)


def _readme(contents: Contents, job: SchedulerJob | None, not_carried: Sequence[str]) -> str:
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
    return fill_template(
        "readme.txt",
        {
            "NAME": plan.name,
            "WHAT": plan.origin.composition or " > ".join(stage.objective for stage in plan.stages),
            "MODEL": plan.model,
            "START": "\n".join(start),
            "SYSTEM": _machine(plan.launch.device).partition("(")[2],
            "DEVICE": f"{each} {count}" if kind else "",
            "MORE": "".join(f"{line}\n" for line in not_carried),
        },
    )


def _fetched_there(what: str, name: str) -> list[str]:
    """What is said of a model or data set of the hub, with the licence that the catalogue knows."""
    shape = model_shape(name)[0] if what == "model" else None
    licence = f" (licence {shape.license})" if shape is not None and shape.license else ""
    lines = [f"Not in it: {what} {name}{licence}, which is downloaded there."]
    if what == "model" and (shape is None or shape.gated or not licence):
        page = f"https://huggingface.co/{name}"
        lines.append(
            f"  If its licence must be accepted, do so at {page}; then set HF_TOKEN there."
        )
    return lines


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
