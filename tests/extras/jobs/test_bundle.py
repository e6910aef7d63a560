"""A plan with everything it needs, packed for another machine, and what is downloaded there."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from advisor.export.exporter import exporters
from advisor.extras.jobs import fetch as fetching
from advisor.extras.jobs import pack
from advisor.extras.jobs.fetch import hub_names
from advisor.extras.jobs.pack import make_bundle, product_files
from advisor.ground.errors import InputError, MachineNotReady
from advisor.plan.read import read_plan
from tests.extras.conftest import write_program
from tests.extras.jobs.project import CONFIG, TASKS, write_project, write_rows
from tests.fake_model import write_fake_model

ROWS = '{"question": "What is 1?", "answer": "One."}\n' * 8
PLAN = """
version: 1
name: shop
model: {model}
stages:
  - name: sft
    objective: sft
    update: lora
    learning_rate: 0.0003  # a reason of one's own
tasks:
  - name: legal
    data:
      path: {legal}
  - name: hr
    data:
      path: hr/train.jsonl
launch: {{device: {device}}}
origin:
  answers:
    data:
      path: {legal}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a plan whose data lie beside it and elsewhere, under the same name."""
    here = tmp_path / "project"
    for folder, rows in ((here / "hr", ROWS), (tmp_path / "elsewhere", ROWS.replace("One", "Two"))):
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(rows)
    write_fake_model(here / "base", CONFIG)
    monkeypatch.chdir(here)
    write_plan()
    return here


def write_plan(*, model="base", legal="../elsewhere/train.jsonl", device="cpu", more=""):
    """./plan.yaml with these values."""
    Path("plan.yaml").write_text(PLAN.format(model=model, legal=legal, device=device) + more)


def packed(*out):
    """What `make_bundle` makes of ./plan.yaml."""
    return make_bundle(Path("plan.yaml"), *map(Path, out))


def plan_in(made):
    """The plan of an unpacked bundle."""
    return read_plan(made.folder / "plan.yaml")


BENCHMARK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: asked/rows.jsonl}}
process_results: !function scoring.right
"""


@pytest.mark.extra("benchmarks", "trackers")
def test_a_benchmark_travels_with_the_files_that_it_names(project):
    """In a folder of its own, so that its relative paths hold; the script installs the harness."""
    (project / "bench" / "asked").mkdir(parents=True)
    score = "def right(doc, results):\n    return {'acc': 1.0}\n"
    named = {"asked/rows.jsonl": ROWS, "own.yaml": BENCHMARK, "scoring.py": score}
    for name, text in {**named, "other.jsonl": ROWS}.items():
        (project / "bench" / name).write_text(text)
    write_plan(
        more="evaluation: {tasks: [bench/own.yaml, arc_easy], max_drop: 0.1}\ntrackers: [wandb]\n"
    )
    bundle = packed()
    files = held(bundle.archive)
    found = sorted(name for name in files if name.startswith("files/"))
    assert found == [f"files/own/{name}" for name in named]
    evaluation = plan_in(bundle).extra_key("benchmarks", "evaluation")
    assert (evaluation.tasks, evaluation.max_drop) == (("files/own/own.yaml", "arc_easy"), 0.1)
    assert b"[train,eval,trackers]" in files["run.sh"]


@pytest.mark.extra("benchmarks")
@pytest.mark.parametrize(
    ("plan", "said"),
    [
        # All of them at once.
        ({"model": "./nowhere", "legal": "gone.jsonl"}, r"(?s)\./nowhere.*gone\.jsonl"),
        # A benchmark that is not there is no name of the hub, and no path leads out of its folder.
        ({"more": "evaluation: {tasks: [gone.yaml]}\n"}, r"names gone\.yaml, and there is no"),
        ({"more": "evaluation: {tasks: [own.yaml]}\n"},
         r"own\.yaml: it names .*train\.jsonl, which is not in its"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_there_or_leads_out_is_refused(project, plan, said):
    """By its name, and nothing is written."""
    outside = BENCHMARK.replace("asked/", "../elsewhere/train.jsonl #")
    (project / "own.yaml").write_text(outside)
    write_plan(**plan)
    with pytest.raises(InputError, match=said):
        packed()
    assert not Path("shop-bundle").exists()


def held(archive):
    """Name without the top folder -> content, of an archive."""
    with tarfile.open(archive) as inside:
        return {
            name.partition("/")[2]: inside.extractfile(name).read() for name in inside.getnames()
        }


def test_a_bundle_holds_what_the_plan_needs_under_relative_paths(project):
    """Model, data and product are the same bytes in folder and archive, and for the same plan."""
    first = packed()
    assert (first.folder, first.archive.name) == (project / "shop-bundle", "shop-bundle.tar.gz")
    plan, inside = plan_in(first), held(first.archive)
    files = (path for path in first.folder.rglob("*") if path.is_file())
    assert inside == {str(path.relative_to(first.folder)): path.read_bytes() for path in files}
    assert [task.data.path for task in plan.tasks] == ["data/train.jsonl", "data/train-2.jsonl"]
    assert b"Two" in inside["data/train.jsonl"]
    assert (b"One" in inside["data/train-2.jsonl"], plan.model) == (True, "models/base")
    assert plan.origin.answers == {"data": {"path": "data/train.jsonl"}}
    assert b"# a reason of one's own" in inside["plan.yaml"]
    assert str(project.parent).encode() not in inside["plan.yaml"]
    assert {"models/base/model.safetensors", "advise/pyproject.toml"} < set(inside)
    assert b"torch==" in inside["advise/constraints-tested.txt"]
    sums = dict(
        reversed(line.split("  ", 1)) for line in inside["SHA256SUMS"].decode().splitlines()
    )
    assert {"data/train.jsonl", "models/base/config.json"} < set(sums)
    assert "plan.yaml" not in sums
    assert sums == {name: hashlib.sha256(inside[name]).hexdigest() for name in sums}
    assert os.access(first.folder / "run.sh", os.X_OK)
    os.utime("hr/train.jsonl", (1, 1))
    second = packed(project / "again" / "shop-bundle.tar.gz")
    assert second.folder is None
    assert [path.name for path in second.archive.parent.iterdir()] == ["shop-bundle.tar.gz"]
    assert second.archive.read_bytes() == first.archive.read_bytes()


def test_nothing_is_overwritten(project):
    """A folder or an archive that is there is named, and stays: the next free name is taken; scp
    takes './-x' for what it is."""
    packed()
    Path("mine.tar.gz").write_text("mine")
    for out, kept, free in (
        ((), ["shop-bundle", "shop-bundle.tar.gz"], "shop-bundle-2"),
        ((), ["shop-bundle", "shop-bundle.tar.gz"], "shop-bundle-3"),
        (("mine",), ["mine.tar.gz"], "mine-2"),
        (("mine.tar.gz",), ["mine.tar.gz"], "mine-3"),
    ):
        bundle = packed(*out)
        said = [f"{one} is there already and stays as it is." for one in kept]
        assert (bundle.lines()[: len(kept)], bundle.name) == (said, free)
        assert bundle.archive == project / f"{free}.tar.gz"
    assert (Path("mine.tar.gz").read_text(), not list(project.glob(".*"))) == ("mine", True)
    assert "  scp ./-x/a.tar.gz HOST:" in packed("-x/a").lines()


@pytest.mark.parametrize(
    "name", ["/", ".tar.gz", ".tgz", "-x", "a:b", "$(id)", "a\nb", "\x1b[31m", "it's", "a/..", " a"]
)
def test_a_name_that_a_shell_or_tar_reads_otherwise_is_refused(project, name):
    """An archive without a name would unpack into the root; '-x' is an option, 'a:b' a host."""
    before = sorted(project.iterdir())
    with pytest.raises(InputError) as refused:
        packed(name)
    fault = refused.value.faults[0]
    assert fault.where
    assert fault.hint
    assert sorted(project.iterdir()) == before


def test_names_on_the_hub_are_fetched_there(project):
    """A hub model stays a name, with its licence's page; several machines start by variables."""
    write_plan(model="Qwen/Qwen3-0.6B", device="cuda, processes: 8, nodes: 2, strategy: fsdp")
    made = packed()
    assert plan_in(made).model == "Qwen/Qwen3-0.6B"
    said = (made.folder / "README.txt").read_text()
    left_out = "Not in it: model Qwen/Qwen3-0.6B (licence apache-2.0), which is downloaded there."
    assert (left_out in said, "HF_TOKEN" in said) == (True, False)
    assert "NNODES=2 MASTER_ADDR=" in said
    assert "2 machines each with 8 NVIDIA GPUs" in said
    write_plan(device="mps")
    assert "On the Mac (macOS, Python 3.11 or later):" in packed("mac.tgz").lines()
    for owner, name in (("meta-llama", "Llama-3.1-8B"), ("nobody", "knows-it")):
        write_plan(model=f"{owner}/{name}")
        lines = [line for line in packed(f"{owner}.tgz").lines() if "HF_TOKEN" in line]
        assert f"do so at https://huggingface.co/{owner}/" in "\n".join(lines)


def test_a_reward_of_ones_own_travels_and_its_secrets_do_not(project, monkeypatch):
    """A file with a secret is refused, and no value of the environment is in any file."""
    for name in ("HF_TOKEN", "ADVISE_RULES_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "this-must-stay-here")
    plan, reward = Path("plan.yaml"), "objective: grpo\n    reward: ../elsewhere/score.py:score"
    plan.write_text(plan.read_text().replace("objective: sft", reward))
    score = project.parent / "elsewhere" / "score.py"
    score.write_text("def score(**_):\n    return 1.0\n")
    made = packed()
    files = held(made.archive)
    assert plan_in(made).stages[0].options["reward"] == "files/score.py:score"
    assert files["files/score.py"] == score.read_bytes()
    assert [name for name, content in files.items() if b"this-must-stay-here" in content] == []
    score.write_text(f"TOKEN = 'hf_{'a' * 34}'\n")
    with pytest.raises(InputError, match=r"score\.py:1: this looks like a secret"):
        packed("other")


@pytest.mark.parametrize(
    ("named", "said"),
    [("score.py:scor", "has no function 'scor'"), ("reward.py:score", "reward: no such file")],
)
def test_a_reward_that_is_not_there_is_refused_here_and_not_on_the_cluster(project, named, said):
    """A misspelt function, or a file that a hub would be asked for."""
    Path("../elsewhere/score.py").write_text("def score(answers, **_):\n    return [0.0]\n")
    plan = Path("plan.yaml")
    reward = f"objective: grpo\n    reward: ../elsewhere/{named}"
    plan.write_text(plan.read_text().replace("objective: sft", reward))
    with pytest.raises(InputError, match=said):
        packed()


def test_links_and_odd_names_become_plain_files(project, monkeypatch):
    """Links are carried as files and hidden files stay here; one that changes leaves no bundle."""
    rows = project / "rows"
    rows.mkdir()
    (rows / "loop").symlink_to(rows)
    (rows / ".env").write_text("SECRET=1")
    (rows / "-a\nb.jsonl").symlink_to(project / "hr" / "train.jsonl")
    write_plan(legal="rows")
    (found,) = (packed().folder / "data" / "rows").rglob("*")
    assert (found.name, found.is_symlink(), found.read_text()) == ("_-a_b.jsonl", False, ROWS)
    copy = pack.shutil.copyfile

    def change(source, place):
        copy(source, place)
        if source.name == "train.jsonl":
            source.write_text(source.read_text() + "{}")

    monkeypatch.setattr(pack.shutil, "copyfile", change)
    with pytest.raises(InputError, match="changed while it was packed"):
        packed("out")
    assert not (project / "out").exists()


def test_the_product_travels_as_a_source_tree():
    """The package, its rules, trainers and tested versions; nothing hidden, cached or built."""
    names = set(product_files())
    assert names >= {
        "pyproject.toml", "hatch_build.py", "LICENSE", "advisor/extras/jobs/run.sh",
        "rules/facts.yaml", "trainers/sft.py", "docs/agents.md", "constraints-tested.txt",
    }  # fmt: skip
    parts = {part for name in names for part in name.split("/")}
    assert not any(part.startswith(".") for part in parts)
    assert not {"__pycache__", "_bundled"} & parts
    assert not any(name.startswith("rules/schema/") for name in names)


@pytest.fixture
def python(tmp_path):
    """A stand-in for an environment that holds everything: notes how it was called."""
    return write_program(
        tmp_path / "python", f'printf "%s\\n" "$*" >> {tmp_path}/calls\nexit ${{CODE:-0}}'
    )


def start(folder, python, *arguments, shell="bash", cwd="/", **environment):
    """run.sh from another folder: its exit code, and what it said."""
    environment = {"PATH": "/usr/bin:/bin", "ADVISE_PYTHON": str(python)} | environment
    done = subprocess.run(
        [shell, f"{folder}/run.sh", *arguments], cwd=cwd, capture_output=True, text=True,
        env={name: value for name, value in environment.items() if value},
    )  # fmt: skip
    return done.returncode, done.stderr


def calls(python):
    """What the stand-in was called with, but for the check of its packages."""
    lines = (python.parent / "calls").read_text().splitlines()
    return [line.removeprefix("-P -m advisor ") for line in lines if " -m " in line]


def test_the_script_measures_once_and_trains(project, python):
    """A dry run, then the run; resumed without one, and measured again where one failed."""
    folder, sound = packed().folder, python.read_text()
    python.write_text(sound.replace("exit $", 'case "$*" in *dry-run) exit 4;; esac; exit $'))
    assert [start(folder, python)[0] for _ in range(2)] == [4, 4]
    python.write_text(sound)
    assert start(folder, python, "--max-steps", "5")[0] == 0
    start(folder, python)
    assert calls(python) == [
        *["run plan.yaml --dry-run"] * 2,
        "run plan.yaml --max-steps 5 --dry-run",
        "run plan.yaml --max-steps 5",
        "run plan.yaml",
    ]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_runs_under_any_shell_in_any_folder(project, python, tmp_path, shell):
    """Also with blanks in the path, and where CDPATH knows a folder of the same name."""
    other = tmp_path / "other" / "a b"
    other.mkdir(parents=True)
    packed("a b").folder.rename(project / "hr" / "a b")
    there = {"shell": shell, "cwd": project / "hr", "CDPATH": str(other.parent)}
    code, said = start("a b", python, "--only", "x y", **there)
    assert code == 0, said
    assert calls(python)[-1] == "run plan.yaml --only x y"


def test_the_script_stops_at_what_is_not_whole_or_not_there(project, python):
    """A changed file, a GPU without driver or an old Python is named, and nothing is started."""
    tools = project / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sha256sum", "cmp", "cat"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    for device, at, more, row, said in (
        ("cuda", python, {}, "", "the plan is for an NVIDIA GPU, and nvidia-smi is not here"),
        ("cpu", "", {"PATH": str(tools)}, "", "no Python from 3.11 on was found"),
        ("mps", python, {}, "{}\n", "data/train.jsonl: FAILED"),
    ):
        write_plan(device=device)
        folder = packed(device).folder
        with (folder / "data" / "train.jsonl").open("a") as file:
            file.write(row)
        code, told = start(folder, at, **more)
        assert (code, said in told) == (4, True)
    assert not (python.parent / "calls").exists()


@pytest.mark.extra("merged")
def test_every_exporter_says_what_it_is():
    """Each form has a name, a line of help, and what it takes."""
    found = exporters()
    assert {"bundle", "merged"} <= set(found)
    assert [exporter.NAME for exporter in found.values()] == list(found)
    for exporter in found.values():
        assert 0 < len(exporter.HELP) <= 62  # a line of `advise export --help`
        assert exporter.TAKES in ("plan", "run")
        assert callable(exporter.export)


@pytest.mark.parametrize(
    ("arguments", "code"), [("bundle --out packed.tgz", 0), ("bundle --only hr", 2), ("bundel", 2)]
)
def test_the_command_packs_a_plan_and_refuses_what_has_no_effect(
    project, call, monkeypatch, arguments, code, approved
):
    """It says what was written and what to do next; an unknown form names the known ones."""
    monkeypatch.chdir(project)
    found, _, err = call("export", "--to", *arguments.split())
    assert found == code
    approved(re.sub(r"[\d.]+ MB|forms: .*", "N", err))


@pytest.mark.slow
def test_a_bundle_trains_where_it_is_unpacked(project, tiny_model, tmp_path):
    """Unpacked in another place, with nothing of the first left, run.sh trains to the end."""
    for path in (Path("hr/train.jsonl"), tmp_path / "elsewhere" / "train.jsonl"):
        write_rows(path, 40)
    write_plan(model=str(tiny_model))
    there = tmp_path / "there"
    with tarfile.open(packed(tmp_path / "shop.tar.gz").archive) as archive:
        archive.extractall(there, filter="data")
    project.rename(tmp_path / "moved-away")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "PYTHONPATH") if name in os.environ}
    code, said = start(
        there / "shop", sys.executable, "--max-steps", "2", "--no-judge", cwd=tmp_path,
        HF_HUB_OFFLINE="1", **kept,
    )  # fmt: skip
    assert code == 0, said
    record = json.loads(next((there / "shop" / "runs").glob("*/run.json")).read_text())
    assert record["status"] == "done"
    assert [stage["name"] for stage in record["stages"]] == ["sft-legal", "sft-hr"]


@pytest.mark.slow
def test_the_product_of_a_bundle_builds_the_wheel_of_the_checkout(project, tmp_path):
    """Also inside a repository that ignores such folders, and packed from an installed product."""
    Path(".git").mkdir()
    Path(".gitignore").write_text("data/\nrules/\n")

    def wheel(source, out):
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
            check=True, capture_output=True,
        )  # fmt: skip
        return next(out.glob("*.whl"))

    made = wheel(packed().folder / "advise", tmp_path / "made")
    built = wheel(Path(__file__).resolve().parents[3], tmp_path / "built")
    assert set(zipfile.ZipFile(made).namelist()) == set(zipfile.ZipFile(built).namelist())
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    quiet = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    subprocess.run([python, *quiet, made], check=True)
    site = next((tmp_path / "clean").glob("lib/python3*/site-packages"))
    (site / "borrowed.pth").write_text(str(Path(yaml.__file__).parents[1]))
    code = (
        "import hashlib, json; from importlib.metadata import requires\n"
        "from advisor.extras.jobs.pack import product_files\n"
        "sums = {name: hashlib.sha256(path.read_bytes()).hexdigest()"
        " for name, path in product_files().items()}\n"
        "print(json.dumps([sums, requires('finetune-advisor')]))"
    )
    shown = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    sums, requires = json.loads(shown.stdout)
    own = product_files().items()
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in own}
    assert any("torch" in one and "extra == 'train'" in one.replace('"', "'") for one in requires)
    assert (python.parent / "advise").is_file()


def test_what_the_hub_has_is_what_the_plan_names_and_the_folder_lacks(tmp_path):
    """Files and folders that are there are nobody's download."""
    path = write_project(tmp_path)
    dpo = "  - {name: dpo, objective: dpo, update: lora, data: someone/pairs, start_from: sft}\n"
    path.write_text(path.read_text().replace("launch:", f"{dpo}launch:"))
    names = [("model", "Qwen/Qwen3-8B"), ("data set", "someone/pairs")]
    assert hub_names(read_plan(path), path) == names
    path = write_project(tmp_path / "other", model="base", data=TASKS)
    assert hub_names(read_plan(path), path) == []


def test_models_are_fetched_with_what_a_run_reads_and_weights_in_a_pickle_last(
    project, monkeypatch
):
    """The plan's revision is fetched, pickled weights if no others; a failure names a way out."""
    write_plan(model="Qwen/Qwen3-8B", more="revision: abc\n")
    refused = OSError("401 Client Error")
    with_weights, without = str(project / "base"), str(project)
    hub = Mock(**{"snapshot_download.side_effect": [with_weights, without, without, refused]})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for _ in range(2):
        fetching.fetch(Path("plan.yaml"))
    with pytest.raises(MachineNotReady, match=r"model Qwen/Qwen3-8B: .*401[^\n]*\n.*hf auth login"):
        fetching.fetch(Path("plan.yaml"))
    calls = hub.snapshot_download.call_args_list
    assert {(*call.args, call.kwargs["revision"]) for call in calls} == {("Qwen/Qwen3-8B", "abc")}
    patterns = [set(call.kwargs["allow_patterns"]) & {"*.bin", "*.safetensors"} for call in calls]
    assert patterns[:3] == [{"*.safetensors"}, {"*.safetensors"}, {"*.bin", "*.safetensors"}]


@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("cuda", 0), ("rocm", 4)])
def test_set_up_needs_no_gpu_and_downloads_once(project, python, device, expected):
    """A login node has none, for an AMD GPU it is made by hand, and once is enough."""
    write_plan(device=device)
    folder = packed("a bundle").folder
    for _ in range(2):
        code, said = start(folder, "" if expected else python, "--set-up")
        assert code == expected, said
    if not expected:
        assert calls(python) == ["-P -m advisor.extras.jobs.fetch plan.yaml"]
        assert (folder / ".fetched").read_text().startswith(f"{folder}/hub\n")
