"""The wheel: one import package, its rules and trainers inside, and a user's own `trainers/` never in the way."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built without the network."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A clean environment with the wheel; third-party packages are those of this environment, by a path file after its own."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    site = next(home.glob("lib/python3*/site-packages"))
    borrowed = tmp_path_factory.mktemp("borrowed")
    for entry in next(Path(sys.prefix).glob("lib/python3*/site-packages")).iterdir():
        if "finetune_advisor" not in entry.name and entry.suffix != ".pth":
            (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(borrowed))
    return home


def test_the_wheel_holds_one_import_package(wheel):
    """Nothing called rules or trainers lands in site-packages, and both travel inside."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"advisor"}
    for inside in ("rules/facts.yaml", "rules/document/guide.yaml", "trainers/sft.py", "trainers/updates/lora.py"):
        assert f"advisor/_bundled/{inside}" in names
    assert "advisor/demo/support.jsonl" in names


def test_the_installed_command_answers(installed, tmp_path):
    """`advise --json` works from a folder of somebody else's `rules/` and `trainers/`."""
    hostile(tmp_path)
    done = subprocess.run([installed / "bin" / "advise", "--json", "--task", "qa", "--gpu", "unknown"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommendation"]["composition"] == "sft+lora"


def hostile(folder):
    """A folder whose own packages carry our names."""
    for name in ("trainers", "rules", "advisor"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (folder / "trainers" / "sft.py").write_text("raise SystemExit('the wrong one')")


def test_the_installed_trainers_train_beside_hostile_ones(installed, tiny_model, tmp_path):
    """A training started in a folder with its own `trainers/` runs ours."""
    hostile(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        installed / "bin" / "advise",
        "run",
        "--task",
        "qa",
        "--gpu",
        "none",
        "--data",
        "train.jsonl",
        "--model",
        str(tiny_model),
        "--max-steps",
        "2",
        "--no-judge",
        "--output",
        "out",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"
    assert list((tmp_path / "out" / "stages" / "sft").glob("adapter_model.safetensors"))


def test_without_the_extra_the_one_line_is_printed(wheel, tmp_path):
    """Asking for training where torch is missing: exit code 4 and the line that installs it."""
    (tmp_path / "train.jsonl").write_text('{"question": "a b c", "answer": "d e f"}\n' * 3 + '{"question": "x", "answer": "y"}\n')
    code = (
        "import sys, importlib.util, importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n    if name in ('torch', 'transformers', 'peft', 'trl', 'accelerate', 'datasets'): raise m.PackageNotFoundError(name)\n    return real(name)\n"
        "m.version = version\n"
        "spec = importlib.util.find_spec\nimportlib.util.find_spec = lambda name, *a: None if name in ('torch', 'transformers', 'trl') else spec(name, *a)\n"
        "sys.argv = ['advise', 'run', '--task', 'qa', '--gpu', 'none', '--data', 'train.jsonl', '--model', 'm']\n"
        "from advisor.cli import main\nmain()"
    )
    (tmp_path / "m").mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 300}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "[train]" in done.stderr
    assert "pip install" in done.stderr
    assert not (tmp_path / "runs").exists()
