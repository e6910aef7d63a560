"""What all tests share: profiles, markers, workers, a tiny and a real model (docs/testing.md)."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # plain pytest is offline
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# No test teaches the next one, nor the user's own file of past runs.
os.environ.setdefault("ADVISE_RUNS", "off")
# Each worker, and each trainer it starts, computes with one thread: together they fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (getattr(signal, "SIGHUP", signal.SIGINT), signal.SIG_DFL),  # Windows has none
):
    if (
        signal.getsignal(_number) == signal.SIG_IGN
    ):  # a background shell and nohup leave them ignored, and children inherit that
        signal.signal(_number, _default)

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------- property tests

# Examples per property test of factor 1.
PROFILES = {"fast": 15, "ci": 50, "long": 500}
for _profile, _count in PROFILES.items():
    # Named, since Hypothesis keeps none where it sees the variable CI; what the night finds is kept
    # here and tried again by day.
    settings.register_profile(
        _profile,
        max_examples=_count,
        derandomize=False,
        database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples"),
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def examples(factor: float, *, deadline: int | None = None, **others: Any) -> settings:
    """Settings of a property test that tries `factor` times the examples of the chosen profile.

    Over 1 for a cheap test or one with many cases to hit, under 1 for one whose examples take long.
    The deadline is the time of one example in milliseconds.
    """
    count = max(1, round(settings.default.max_examples * factor))
    return settings(max_examples=count, deadline=deadline, **others)


def scaled(count: int) -> int:
    """A number of random cases that a test draws: `count` under `ci`, else in proportion."""
    return max(1, round(count * settings.default.max_examples / PROFILES["ci"]))


# --------------------------------------------------------------------------- optional features


def hide(names: list[str]) -> None:
    """Make advisor.extras a folder of links to all extras but these."""
    package = import_module("advisor.extras")
    links = Path(tempfile.mkdtemp(prefix="extras-"))
    for path in Path(package.__path__[0]).iterdir():
        if path.name not in names:
            (links / path.name).symlink_to(path)
    package.__path__ = [str(links)]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--hide-extra=NAME: the suite as if advisor/extras/NAME were not there, without its tests."""
    about = "test without this folder of extras; repeatable"
    parser.addoption("--hide-extra", metavar="NAME", action="append", default=[], help=about)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the extras before anything of the product lists them."""
    if names := config.getoption("--hide-extra"):
        hide(names)


def is_about(path: Path, hidden: list[str]) -> bool:
    """True for a file that lies with a hidden extra, names it, or compares all extras' pages."""
    if not hidden or path.suffix != ".py":
        return False
    if path.name == "test_generated.py":
        return True
    extras, text = ROOT / "tests" / "extras", path.read_text("utf-8")
    return any(path.is_relative_to(extras / name) or f"extras.{name}" in text for name in hidden)


# --------------------------------------------------------------------------- markers

BY_NAME_ONLY = ("smoke", "slow", "long", "gpu")  # run only if -m names them
TRAINING = ("torch", "transformers", "peft", "trl")
CAN_TRAIN = all(find_spec(package) for package in TRAINING)
TRAINING_FOLDERS = tuple(ROOT / "tests" / name for name in ("trainers", "peft_adapter"))
MODEL_FIXTURES = {"tiny_model", "smollm"}
# What the extra brings besides, and modules of tests import by name.
BROUGHT = {*TRAINING, "accelerate", "datasets", "jinja2", "numpy", "safetensors", "tokenizers"}
NEEDS_TORCH_AT_THE_TOP = re.compile(r'^(?:\w+ = )?pytest\.importorskip\("(?:torch|trl)"\)', re.M)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True for a module that -m or --hide-extra leaves out: a look is quicker than an import."""
    if is_about(collection_path, config.getoption("--hide-extra")):
        return True
    wanted = config.option.markexpr
    if wanted in ("smoke", "slow", "long") and collection_path.name.startswith("test_"):
        return wanted not in collection_path.read_text("utf-8").lower() or None
    if "not train" not in wanted or re.search(r"\bor\b", wanted) or collection_path.suffix != ".py":
        return None
    return bool(NEEDS_TORCH_AT_THE_TOP.search(collection_path.read_text("utf-8"))) or None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Without the extra [train], skip a module that cannot be imported for want of it."""
    report = yield
    if report.outcome != "failed" or CAN_TRAIN:
        return report
    fault = report.call.excinfo.value.__cause__  # type: ignore[attr-defined]
    if isinstance(fault, ModuleNotFoundError) and (fault.name or "").split(".")[0] in BROUGHT:
        why = f"Skipped: training needs the extra [train] (no {fault.name})"
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, why)
    return report


@pytest.hookimpl(tryfirst=True)  # before pytest itself reads the markers for -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs torch, skip it without torch, and leave out tests that -m must name."""
    named = set(re.findall(r"\w+", config.option.markexpr))
    hidden = set(config.getoption("--hide-extra"))
    kept, left_out = [], []
    for item in items:
        if needs_torch(item):
            item.add_marker("train")
            if not CAN_TRAIN:
                item.add_marker(pytest.mark.skip(reason="training needs the extra [train]"))
        needed = {name for name in BY_NAME_ONLY if item.get_closest_marker(name)}
        if "long" in needed:  # the longest cases of a slow test
            needed.discard("slow")
        uses = {name for marker in item.iter_markers("extra") for name in marker.args}
        (kept if needed <= named and not uses & hidden else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    # The longest first: a minute of one worker at the end is a minute that the others wait.
    items[:] = sorted(kept, key=lambda item: "smollm" not in getattr(item, "fixturenames", ()))


def needs_torch(item: pytest.Item) -> bool:
    """True for a test marked `train`, with a model, or in a folder that trains and not `light`."""
    if item.get_closest_marker("train") or MODEL_FIXTURES & set(getattr(item, "fixturenames", ())):
        return True
    inside = any(item.path.is_relative_to(folder) for folder in TRAINING_FOLDERS)
    return inside and not item.get_closest_marker("light")


# --------------------------------------------------------------------------- workers

WORKER_BYTES = 3 * 2**30  # a worker that trains was seen to hold 2.5 GiB
MOST_WORKERS = 8


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: one for each usable core as far as memory goes, at most eight."""
    from advisor.probe.system import usable_cores, usable_memory

    cores, memory = usable_cores()[0] or 1, usable_memory()[0]
    fitting = MOST_WORKERS if memory is None else memory // WORKER_BYTES
    return max(1, min(cores, fitting, MOST_WORKERS))


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run folders in parallel as with `-n auto`, but files, tests and --pdb in one process."""
    # An option in pyproject.toml would do the same but make `-p no:xdist` an error.
    option = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    whole = any(Path(argument).is_dir() for argument in config.args)
    if option.numprocesses is None and option.dist == "no" and whole and not option.usepdb:
        count = config.hook.pytest_xdist_auto_num_workers(config=config)
        option.numprocesses = count if count > 1 and not option.collectonly else 0
    if option.numprocesses and option.dist == "no":
        option.dist = "worksteal"


@pytest.fixture(scope="session")
def once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, fill)`: a folder that the first worker to ask for it fills and all others use."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent  # each worker has a folder of its own in it
    (base / "once").mkdir(exist_ok=True)

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = (base / "once" / f"{name}{ending}" for ending in ("", ".done"))
        with FileLock(base / "once" / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def situation_files(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The data files of random situations, under one path so that all share random_advice."""
    from tests.advice.situations import write_data

    return once("situation-files", write_data)


@pytest.fixture(scope="module", autouse=True)
def _imports_stay() -> None:
    """Freeze loaded imports: each collection, several a training, read through them in 0.4 s."""
    gc.collect()
    gc.freeze()


# --------------------------------------------------------------------------- models and commands

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
CORPUS = [
    "Where is my parcel? Thank you for writing to us, we will look at your order today.",
    "How can I return a kettle? Please send it back within thirty days, we pay the money back.",
    (
        "system user assistant question answer hello good morning the shop sells tea, cups and"
        " kettles in red, blue and green."
    ),
]
PAIRS = "".join(
    json.dumps({"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}, of course."})
    + "\n"
    for i in range(240)
)


def of_keys(value: Any, stored: Any) -> Any:
    """The value with those keys alone that a stored one has: later versions may write more."""
    if isinstance(value, dict) and isinstance(stored, dict):
        return {key: of_keys(value[key], stored[key]) for key in stored if key in value}
    if isinstance(value, list | tuple) and isinstance(stored, list):
        return [of_keys(*pair) for pair in zip(value, stored, strict=True)]
    return value


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `advise ...` in a folder of its own; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVISE_RULES", raising=False)

    from advisor.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["advise", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def golden(name: str, text: str) -> str:
    """The golden file's text; with UPDATE_GOLDEN in the environment this one is written first."""
    path = ROOT / "tests" / "golden" / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def approved(request, tmp_path):
    """Holds all that a case of a table says against what was approved; UPDATE_GOLDEN writes it."""
    module, _, case = request.node.nodeid.removeprefix("tests/").partition("::")
    test, _, case = case.partition("[")
    path = ROOT / "tests" / "golden" / f"{module.removesuffix('.py').replace('/', '.')}.{test}.json"

    def hold(found):
        import msgspec

        from advisor.ground.version import __version__

        text = json.dumps(
            msgspec.to_builtins(found, str_keys=True, enc_hook=str), ensure_ascii=False
        )
        for said, name in ((str(tmp_path), "PLACE"), (str(ROOT), "ROOT"), (__version__, "VERSION")):
            text = text.replace(said, name)
        text = re.sub(r"\(digest [0-9a-f]{16}\)", "(digest DIGEST)", text)  # any rule changes it
        shown = json.loads(text)
        if isinstance(shown, str):
            shown = shown.splitlines()
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if os.environ.get("UPDATE_GOLDEN"):
            known[case.removesuffix("]")] = shown
            path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
        assert shown == known[case.removesuffix("]")]

    return hold


@pytest.fixture
def terminal():
    """Start a command in a pseudo-terminal; what still runs is ended with the test."""
    pexpect, children = pytest.importorskip("pexpect"), []

    def start(command, arguments, *, env, rows=40, columns=80):
        # PROMPT_TOOLKIT_NO_CPR: nobody answers the question where the cursor is.
        told = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1", **env}
        size = {"dimensions": (rows, columns), "encoding": "utf-8", "timeout": 60}
        children.append(pexpect.spawn(command, arguments, env=told, **size))
        return children[-1]

    yield start
    for child in children:
        child.close(force=True)


@pytest.fixture(scope="session")
def tiny_model(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of a random two-layer Llama with a small real tokenizer and a ChatML template."""
    return once("tiny-model", save_tiny_model)


def save_tiny_model(folder: Path) -> None:
    """Save it into the folder: the same bytes each time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def smollm(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once into the user's cache, for slow tests."""

    def fetch(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trainers.tools.demo_model"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            why = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"cannot get the real model here: {why}")
        (folder / "path.txt").write_text(done.stdout.strip())

    return Path((once("smollm", fetch) / "path.txt").read_text())
