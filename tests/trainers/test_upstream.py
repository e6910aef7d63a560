"""docs/upstream.md is complete, and the private names of libraries that we build on are there."""

import ast
import inspect
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.trainers.runs import kinds_of_files
from trainers.keep.checkpoint_store import COMPLETE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "upstream.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w.]+)` \| `([\w./]+)` \| (.+?) \| `([\w./]+)::(\w+)` \|$", re.MULTILINE)
NAMES = {name: Path(where) for name, where, *_ in ROW.findall(PAGE)}
LISTED = {name.rpartition(".")[2] for name in NAMES}
LIBRARIES = ("transformers", "accelerate", "trl", "peft", "bitsandbytes", "torch")


@pytest.mark.light
def test_every_row_names_a_file_and_a_test():
    """Each row of the page is complete: our file names the attribute, the test is there."""
    rows = ROW.findall(PAGE)
    assert 40 < len(rows) == len(NAMES) <= 61  # each may cost us a release
    assert len(rows) == len(re.findall(r"^\| `", PAGE, re.MULTILINE))
    for name, where, _, test_file, test in rows:
        last = name.rpartition(".")[2]
        assert re.search(rf"\b{last}\b", (ROOT / where).read_text("utf-8")), name
        assert f"def {test}(" in (ROOT / test_file).read_text("utf-8"), f"{test_file}::{test}"


@pytest.mark.light
def test_nothing_private_is_missing_from_the_page():
    """A private attribute of somebody else's object, or an experimental module, is on the page."""
    missing = []
    ours = (ROOT / "trainers", ROOT / "advisor" / "peft_adapter")
    files = [path for folder in ours for path in folder.rglob("*.py")]
    assert len(files) > 60
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                inherited = isinstance(node.value, ast.Call)  # super()
                if not ours and not inherited and f"`{node.attr}`" not in PAGE:
                    missing += [] if node.attr in LISTED else [f"{place} {node.attr}"]
            elif isinstance(node, ast.ImportFrom) and "experimental" in (node.module or ""):
                used = {f"{node.module}.{alias.name}" for alias in node.names}
                used = {name for name in used if not name.endswith("Config")}
                missing += [f"{place} {name}" for name in used - set(NAMES)]
    # What Python documents: members of an Enum, and os._exit.
    public = ("_name_", "_value_", "_sort_order_", " _exit")
    assert [place for place in missing if not place.endswith(public)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_still_there(name):
    """The installed version has the name, or its code sets it on its instances."""
    owner, _, last = name.rpartition(".")
    found = resolve_name(owner)
    source = "" if hasattr(found, last) else inspect.getsource(found)
    assert not source or f".{last} = " in source or f'"{last}"' in source


def our_classes():
    """Our subclasses of the libraries' classes, as they are used."""
    from advisor.peft_adapter.layer import BottleneckLayer
    from advisor.peft_adapter.model import BottleneckModel
    from trainers import dpo, kto, orpo, rm, simpo
    from trainers.stage.rollout_trainers import GRPO, RLOO
    from trainers.stage.trl_trainer import SFT, Classes, Seq2Seq, with_ours
    from trainers.teachers.trainer import Distilling

    recipes = (dpo.DPO, kto.KTO, rm.RewardModel, orpo.ORPO, simpo.SimPO)
    return [
        *(with_ours(resolve_name(one.trained_by), one.keeps) for one in recipes),
        *(SFT, Classes, Seq2Seq, GRPO, RLOO, Distilling), BottleneckLayer, BottleneckModel,
    ]  # fmt: skip


def overrides():
    """(our class, attribute, the library's own) of everything that ours replace."""
    for kind in our_classes():
        theirs = [part for part in kind.__mro__ if part.__module__.split(".")[0] in LIBRARIES]
        own = [part for part in kind.__mro__ if part not in theirs and part is not object]
        for name in dict.fromkeys(name for part in own for name in vars(part)):
            base = next((part for part in theirs if name in vars(part)), None)
            if base is not None and not name.startswith("__"):
                yield kind, name, vars(base)[name]


def test_every_private_override_is_on_the_page():
    """What we replace of a private name is listed, so that its mover is found."""
    private = {name for _, name, _ in overrides() if name.startswith("_")}
    assert len(private) > 12
    assert private - LISTED - {"_abc_impl"} == set()  # Python keeps that one


def test_our_overrides_take_what_the_library_passes():
    """Each parameter of a replaced method has its place in ours."""
    checked, keywords = 0, inspect.Parameter.VAR_KEYWORD
    for kind, name, original in overrides():
        theirs = original.__func__ if isinstance(original, staticmethod) else original
        ours = getattr(kind, name)
        if not inspect.isfunction(theirs) or not callable(ours):
            continue
        own = inspect.signature(ours).parameters
        wanted = inspect.signature(theirs).parameters.items()
        if keywords not in {parameter.kind for parameter in own.values()}:
            named = {part for part, parameter in wanted if parameter.kind is not keywords}
            lacking = named - set(own) - {"self"}
            assert not lacking, f"{kind.__name__}.{name} lacks {', '.join(lacking)}"
        checked += 1
    assert checked > 40


def test_a_run_folder_holds_no_pickle(trained_once):
    """Files are judged by what they hold, whatever transformers adds to a checkpoint next."""
    job = trained_once("dpo")
    kept = [path for path in job.checkpoints.rglob("*") if path.is_file()]
    assert COMPLETE in {path.name for path in kept}
    assert len(kept) > 8
    assert kinds_of_files(job.run) == {"safetensors", "text", "arrow", "numbers"}
