"""A plan with everything it needs, packed for another machine."""

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from advisor.export.exporter import exporters
from advisor.extras.jobs.pack import make_bundle, product_files
from advisor.ground.errors import InputError
from advisor.plan.read import read_plan
from tests.fake_model import write_fake_model

ROWS = '{"question": "What is 1?", "answer": "One."}\n' * 8
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
}  # fmt: skip
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
launch:
  device: {device}
origin:
  answers:
    data:
      path: {legal}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a plan whose data lie beside it and elsewhere, under the same name."""
    here = tmp_path / "project"
    (here / "hr").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (here / "hr" / "train.jsonl").write_text(ROWS)
    (tmp_path / "elsewhere" / "train.jsonl").write_text(ROWS.replace("One", "Two"))
    write_fake_model(here / "base", CONFIG)
    monkeypatch.chdir(here)
    write_plan()
    return here


def write_plan(*, model="base", legal="../elsewhere/train.jsonl", device="cpu", more=""):
    """./plan.yaml with these values."""
    Path("plan.yaml").write_text(PLAN.format(model=model, legal=legal, device=device) + more)


BENCHMARK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: asked/rows.jsonl}}
process_results: !function scoring.right
"""


def test_a_benchmark_travels_with_the_files_that_it_names(project):
    """In a folder of its own, so that its relative paths hold; the script installs the harness."""
    bench = project / "bench"
    (bench / "asked").mkdir(parents=True)
    (bench / "own.yaml").write_text(BENCHMARK)
    (bench / "asked" / "rows.jsonl").write_text(ROWS)
    (bench / "scoring.py").write_text("def right(doc, results):\n    return {'acc': 1.0}\n")
    (bench / "other.jsonl").write_text(ROWS)
    more = "evaluation: {tasks: [bench/own.yaml, arc_easy], max_drop: 0.1}\ntrackers: [wandb]\n"
    write_plan(more=more)
    bundle = make_bundle(Path("plan.yaml"))
    files = held(bundle.archive)
    assert sorted(name for name in files if name.startswith("files/")) == [
        "files/own/asked/rows.jsonl",
        "files/own/own.yaml",
        "files/own/scoring.py",
    ]
    packed = read_plan(bundle.folder / "plan.yaml").extra_key("benchmarks", "evaluation")
    assert (packed.tasks, packed.max_drop) == (("files/own/own.yaml", "arc_easy"), 0.1)
    assert b"[train,eval,trackers]" in files["run.sh"]


def test_a_benchmark_that_is_not_there_is_a_fault_of_the_plan(project):
    """It is no name of the hub."""
    write_plan(more="evaluation: {tasks: [own.yaml]}\n")
    with pytest.raises(InputError, match=r"names own\.yaml, and there is no"):
        make_bundle(Path("plan.yaml"))


def test_a_benchmark_that_names_a_file_outside_its_folder_is_refused(project):
    """Its relative path would not hold elsewhere."""
    (project / "bench").mkdir()
    (project / "bench" / "own.yaml").write_text(BENCHMARK.replace("asked/", "../hr/train.jsonl #"))
    write_plan(more="evaluation: {tasks: [bench/own.yaml]}\n")
    with pytest.raises(
        InputError, match=r"own\.yaml: it names .*train\.jsonl, which is not in its"
    ):
        make_bundle(Path("plan.yaml"))


def held(archive):
    """Name without the top folder -> content, of an archive."""
    with tarfile.open(archive) as packed:
        return {
            name.partition("/")[2]: packed.extractfile(name).read() for name in packed.getnames()
        }


def test_a_bundle_holds_what_the_plan_needs_under_relative_paths(project):
    """Model, data and product are in it; files of one name do not collide; reasons stay."""
    made = make_bundle(Path("plan.yaml"))
    assert (made.folder, made.archive.name) == (project / "shop-bundle", "shop-bundle.tar.gz")
    plan = read_plan(made.folder / "plan.yaml")
    paths = [task.data.path for task in plan.tasks]
    assert paths == ["data/train.jsonl", "data/train-2.jsonl"]
    assert plan.model == "models/base"
    assert plan.origin.answers == {"data": {"path": "data/train.jsonl"}}
    assert "Two" in (made.folder / paths[0]).read_text()
    assert "One" in (made.folder / paths[1]).read_text()
    assert (made.folder / "models/base/model.safetensors").is_file()
    text = (made.folder / "plan.yaml").read_text()
    assert "# a reason of one's own" in text
    assert str(project.parent) not in text
    assert (made.folder / "advise" / "pyproject.toml").is_file()
    assert "torch==" in (made.folder / "advise" / "constraints-tested.txt").read_text()


def test_folder_and_archive_hold_the_same_and_repeat(project):
    """The same plan and data give the same bytes, with no owner and no time in them."""
    first = make_bundle(Path("plan.yaml"))
    inside = {
        path.relative_to(first.folder).as_posix(): path.read_bytes()
        for path in first.folder.rglob("*")
        if path.is_file()
    }
    assert held(first.archive) == inside
    os.utime("hr/train.jsonl", (1, 1))
    second = make_bundle(Path("plan.yaml"), project / "again" / "shop-bundle.tar.gz")
    assert second.folder is None
    assert [path.name for path in second.archive.parent.iterdir()] == ["shop-bundle.tar.gz"]
    assert second.archive.read_bytes() == first.archive.read_bytes()
    assert gzip.decompress(first.archive.read_bytes())
    assert os.access(first.folder / "run.sh", os.X_OK)


def test_the_digests_are_those_of_the_files(project):
    """SHA256SUMS names every file that a run must find as it was; the plan may be edited."""
    folder = make_bundle(Path("plan.yaml")).folder
    sums = dict(
        reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    assert {"data/train.jsonl", "models/base/config.json"} < set(sums)
    assert "plan.yaml" not in sums
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_nothing_is_overwritten(project):
    """A folder or an archive that is there is named, and stays."""
    make_bundle(Path("plan.yaml"))
    with pytest.raises(InputError, match="is there already"):
        make_bundle(Path("plan.yaml"))
    Path("mine").write_text("mine")
    with pytest.raises(InputError, match="mine is there already"):
        make_bundle(Path("plan.yaml"), project / "mine")
    assert Path("mine").read_text() == "mine"
    assert not [path for path in project.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "name", ["/", ".tar.gz", ".tgz", "-x", "a:b", "$(id)", "a\nb", "\x1b[31m", "it's", "a/..", " a"]
)
def test_a_name_that_a_shell_or_tar_reads_otherwise_is_refused(project, name):
    """An archive without a name would unpack into the root; '-x' is an option, 'a:b' a host."""
    before = sorted(project.iterdir())
    with pytest.raises(InputError) as refused:
        make_bundle(Path("plan.yaml"), Path(name))
    fault = refused.value.faults[0]
    assert fault.where
    assert fault.hint
    assert sorted(project.iterdir()) == before


def test_names_on_the_hub_are_fetched_there(project):
    """A hub model stays a name; the lines say so, and how a licence is accepted."""
    write_plan(model="Qwen/Qwen3-0.6B")
    made = make_bundle(Path("plan.yaml"))
    assert read_plan(made.folder / "plan.yaml").model == "Qwen/Qwen3-0.6B"
    said = (made.folder / "README.txt").read_text()
    assert (
        "Not in it: model Qwen/Qwen3-0.6B (licence apache-2.0), which is downloaded there." in said
    )
    assert "HF_TOKEN" not in said


def test_a_licence_that_must_be_accepted_is_said(project):
    """With the page where that is done; of a model that nobody knows it is said in case."""
    for model, words in (
        ("meta-llama/Llama-3.1-8B", "do so at https://huggingface.co/meta-llama/"),
        ("nobody/knows-it", "do so at https://huggingface.co/nobody/"),
    ):
        write_plan(model=model)
        made = make_bundle(Path("plan.yaml"), project / f"{model.split('/')[0]}.tar.gz")
        assert any(words in line and "HF_TOKEN" in line for line in made.lines())


def test_every_path_that_is_not_there_is_named(project):
    """All of them at once, and nothing is written."""
    write_plan(model="./nowhere", legal="gone.jsonl")
    with pytest.raises(InputError) as error:
        make_bundle(Path("plan.yaml"))
    assert "./nowhere" in error.value.text()
    assert "gone.jsonl" in error.value.text()
    assert not Path("shop-bundle").exists()


def test_a_reward_of_ones_own_travels_and_its_secrets_do_not(project):
    """The file is carried under a relative path; one with a secret in it is refused."""
    grpo = PLAN.replace(
        "objective: sft", "objective: grpo\n    reward: ../elsewhere/score.py:score"
    )
    Path("plan.yaml").write_text(
        grpo.format(model="base", legal="../elsewhere/train.jsonl", device="cpu")
    )
    score = project.parent / "elsewhere" / "score.py"
    score.write_text("def score(**_):\n    return 1.0\n")
    made = make_bundle(Path("plan.yaml"))
    assert (
        read_plan(made.folder / "plan.yaml").stages[0].options["reward"] == "files/score.py:score"
    )
    assert (made.folder / "files" / "score.py").read_text() == score.read_text()
    score.write_text(f"TOKEN = 'hf_{'a' * 34}'\n")
    with pytest.raises(InputError, match=r"score\.py:1: this looks like a secret"):
        make_bundle(Path("plan.yaml"), project / "other")


def test_no_secret_of_the_environment_travels(project, monkeypatch):
    """No value of the environment is in any file."""
    for name in ("HF_TOKEN", "ADVISE_RULES_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "this-must-stay-here")
    for name, content in held(make_bundle(Path("plan.yaml")).archive).items():
        assert b"this-must-stay-here" not in content, name


def test_links_and_odd_names_become_plain_files(project):
    """A link is carried as the file it leads to; a loop ends; what is hidden stays here."""
    rows = project / "rows"
    rows.mkdir()
    (rows / "loop").symlink_to(rows)
    (rows / ".env").write_text("SECRET=1")
    (rows / "-a\nb.jsonl").symlink_to(project / "hr" / "train.jsonl")
    write_plan(legal="rows")
    folder = make_bundle(Path("plan.yaml")).folder
    found = list((folder / "data" / "rows").rglob("*"))
    assert [path.name for path in found] == ["_-a_b.jsonl"]
    assert not found[0].is_symlink()
    assert found[0].read_text() == ROWS


def test_the_product_travels_as_a_source_tree():
    """The package, its rules, trainers and tested versions; nothing hidden, cached or built."""
    names = set(product_files())
    for inside in (
        "pyproject.toml",
        "hatch_build.py",
        "LICENSE",
        "advisor/extras/jobs/run.sh",
        "rules/facts.yaml",
        "trainers/sft.py",
        "docs/agents.md",
        "constraints-tested.txt",
    ):
        assert inside in names
    parts = {part for name in names for part in name.split("/")}
    assert not any(part.startswith(".") for part in parts)
    assert not {"__pycache__", "_bundled"} & parts
    assert not any(name.startswith("rules/schema/") for name in names)


# --------------------------------------------------------------------------- the script


@pytest.fixture
def python(tmp_path):
    """A stand-in for an environment that holds everything: notes how it was called."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/calls\nexit ${{CODE:-0}}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def start(folder, python, *arguments, **environment):
    """bash run.sh from another folder."""
    return subprocess.run(
        ["bash", str(folder / "run.sh"), *arguments],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "ADVISE_PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
    )


def calls(python):
    """What the stand-in was called with, but for the check of its packages."""
    lines = (python.parent / "calls").read_text().splitlines()
    return [line.removeprefix("-P -m advisor ") for line in lines if " -m " in line]


def test_the_script_measures_once_and_trains(project, python):
    """Dry run, then the run; called again it resumes without another dry run."""
    folder = make_bundle(Path("plan.yaml")).folder
    done = start(folder, python, "--max-steps", "5")
    assert done.returncode == 0, done.stderr
    start(folder, python)
    assert calls(python) == [
        "run plan.yaml --max-steps 5 --dry-run",
        "run plan.yaml --max-steps 5",
        "run plan.yaml",
    ]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_runs_under_any_shell_in_any_folder(project, python, tmp_path, shell):
    """Also with blanks in the path, and where CDPATH knows a folder of the same name."""
    other = tmp_path / "other" / "a b"
    other.mkdir(parents=True)
    (make_bundle(Path("plan.yaml"), Path("a b")).folder or project).rename(project / "hr" / "a b")
    done = subprocess.run(
        [shell, "a b/run.sh", "--only", "x y"],
        cwd=project / "hr",
        env={"PATH": "/usr/bin:/bin", "ADVISE_PYTHON": str(python), "CDPATH": str(other.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert calls(python)[-1] == "run plan.yaml --only x y"


def test_the_script_stops_at_what_is_not_whole(project, python):
    """A changed file is named, and nothing is started."""
    folder = make_bundle(Path("plan.yaml")).folder
    with (folder / "data" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    done = start(folder, python)
    assert done.returncode == 4
    assert "data/train.jsonl: FAILED" in done.stderr
    assert not (python.parent / "calls").exists()


def test_the_script_says_what_the_machine_lacks(project, python):
    """No driver for a plan that needs one; no Python that is new enough."""
    write_plan(device="cuda")
    folder = make_bundle(Path("plan.yaml")).folder
    done = start(folder, python)
    assert done.returncode == 4
    assert "the plan is for an NVIDIA GPU, and nvidia-smi is not here" in done.stderr
    write_plan()
    other = make_bundle(Path("plan.yaml"), project / "other").folder
    tools = project / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sha256sum", "cmp", "cat"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    done = start(other, "", PATH=str(tools))
    assert done.returncode == 4
    assert "no Python from 3.11 on was found" in done.stderr


def test_a_failed_dry_run_ends_the_script_with_its_code(project, python):
    """Its exit code is the script's; the next call measures again."""
    folder = make_bundle(Path("plan.yaml")).folder
    python.write_text(
        python.read_text().replace("exit $", 'case "$*" in *dry-run) exit 4;; esac; exit $')
    )
    assert start(folder, python).returncode == 4
    assert start(folder, python).returncode == 4
    assert calls(python) == ["run plan.yaml --dry-run"] * 2


# --------------------------------------------------------------------------- the command


def test_every_exporter_says_what_it_is():
    """Each form has a name, a line of help, and what it takes."""
    found = exporters()
    assert {"bundle", "merged"} <= set(found)
    assert [exporter.NAME for exporter in found.values()] == list(found)
    for exporter in found.values():
        assert 0 < len(exporter.HELP) <= 62  # a line of `advise export --help`
        assert exporter.TAKES in ("plan", "run")
        assert callable(exporter.export)


def advise(*words):
    """`advise` as a child process: exit code and what it said."""
    done = subprocess.run([sys.executable, "-m", "advisor", *words], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_command_packs_a_plan_and_refuses_what_has_no_effect(project):
    """It says what was written and what to do next; an unknown form names the known ones."""
    code, said = advise("export", "--to", "bundle", "--out", "packed.tgz")
    assert code == 0, said
    assert "Wrote packed.tgz" in said
    assert "tar xzf packed.tgz && bash packed/run.sh" in said
    assert advise("export", "--to", "bundle", "--only", "hr")[0] == 2
    code, said = advise("export", "--to", "bundel")
    assert (code, "did you mean 'bundle'?" in said) == (2, True)


@pytest.mark.slow
def test_a_bundle_trains_where_it_is_unpacked(project, tiny_model, tmp_path):
    """Unpacked in another place, with nothing of the first left, run.sh trains to the end."""
    rows = "".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(40))
    Path("hr/train.jsonl").write_text(rows)
    (tmp_path / "elsewhere" / "train.jsonl").write_text(rows)
    write_plan(model=str(tiny_model))
    archive = make_bundle(Path("plan.yaml"), tmp_path / "shop.tar.gz").archive
    there = tmp_path / "there"
    with tarfile.open(archive) as packed:
        packed.extractall(there, filter="data")
    project.rename(tmp_path / "moved-away")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    environment = {
        name: os.environ[name] for name in ("HOME", "PATH", "PYTHONPATH") if name in os.environ
    }
    done = subprocess.run(
        ["bash", there / "shop" / "run.sh", "--max-steps", "2", "--no-judge"], cwd=tmp_path,
        env={**environment, "ADVISE_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(next((there / "shop" / "runs").glob("*/run.json")).read_text())
    assert record["status"] == "done"
    assert [stage["name"] for stage in record["stages"]] == ["sft-legal", "sft-hr"]


@pytest.mark.slow
def test_the_product_of_a_bundle_builds_the_wheel_of_the_checkout(project, tmp_path):
    """Also in a repository that ignores folders of its names; and an installed product packs the
    same files as a checkout.
    """
    root = Path(__file__).resolve().parents[3]
    Path(".git").mkdir()
    Path(".gitignore").write_text("data/\nrules/\n")
    advise = make_bundle(Path("plan.yaml")).folder / "advise"

    def wheel(source, out):
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
            check=True, capture_output=True,
        )  # fmt: skip
        return next(out.glob("*.whl"))

    made, built = wheel(advise, tmp_path / "made"), wheel(root, tmp_path / "built")
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
    packed = product_files().items()
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in packed}
    assert any("torch" in one and "extra == 'train'" in one.replace('"', "'") for one in requires)
    assert (tmp_path / "clean" / "bin" / "advise").is_file()


def test_a_folder_that_begins_like_an_option_is_named_as_a_path(project):
    """scp and tar take './-x/a.tar.gz' for what it is."""
    lines = make_bundle(Path("plan.yaml"), Path("-x/a")).lines()
    assert "  scp ./-x/a.tar.gz HOST:" in lines


def test_data_that_are_gone_or_change_meanwhile_are_said(project, monkeypatch):
    """The file is named, and nothing is left of the bundle."""
    from advisor.extras.jobs import pack

    copy = pack.shutil.copyfile

    def change(source, place):
        copy(source, place)
        if source.name == "train.jsonl":
            source.write_text(source.read_text() + "{}")

    monkeypatch.setattr(pack.shutil, "copyfile", change)
    with pytest.raises(InputError, match="changed while it was packed"):
        make_bundle(Path("plan.yaml"), Path("out"))
    assert not (project / "out").exists()
