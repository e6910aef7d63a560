"""The wheel, by way of the source archive: one package with rules and trainers inside; a user's `trainers/` is not in its way."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from advisor.ground.version import __version__
from advisor.ruleset.load import load_rules
from advisor.schema.build import SUFFIX, schemas
from tests.conftest import PAIRS, ROOT
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG
from tools.generate.agent_files import MANIFESTS

pytestmark = pytest.mark.smoke
HERE = next(Path(sys.prefix).glob("lib/python3*/site-packages"))


@pytest.fixture(autouse=True)
def _nothing_beside_the_wheel(monkeypatch):
    """A checkout that PYTHONPATH names would be imported in place of the wheel."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source archive of this checkout, and the wheel built from it; without the network."""
    out = tmp_path_factory.mktemp("dist")
    command = ["build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def environment(home, wheel):
    """A clean environment with the wheel alone; its folder of packages."""
    venv.create(home, with_pip=True)
    options = ["--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", *options], check=True)
    return next(home.glob("lib/python3*/site-packages"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A clean environment with the wheel, and this one's other packages by a path file after it."""
    home = tmp_path_factory.mktemp("clean")
    (environment(home, wheel) / "borrowed.pth").write_text(str(HERE))
    return home


def advise(home, *arguments, cwd, code=0, name="advise"):
    """What that command of the environment printed, or said if it ends otherwise."""
    done = subprocess.run(
        [home / "bin" / name, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


LIGHT = (
    *("charset_normalizer", "click", "msgspec", "yaml", "_yaml", "questionary", "prompt_toolkit"),
    *("wcwidth", "rich", "markdown_it", "mdurl", "pygments", "phonenumbers", "pynvml.py"),
)


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """A clean environment with the wheel and the core dependencies alone: no torch anywhere."""
    home = tmp_path_factory.mktemp("light")
    site = environment(home, wheel)
    found = [name for name in LIGHT if (HERE / name).exists()]
    assert len(found) >= len(LIGHT) - 1
    for name in (*found, *(file.name for file in HERE.glob("*__mypyc*.so"))):
        (site / name).symlink_to(HERE / name)
    return home


def test_the_wheel_holds_one_import_package(wheel):
    """Nothing called rules or trainers lands in site-packages, and both travel inside."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"advisor"}
    inside = (
        "rules/facts.yaml",
        "rules/document/guide.yaml",
        "trainers/sft.py",
        "trainers/updates/lora.py",
        "docs/agents.md",
        "docs/architecture.md",
        "site/index.html",
        "site/page.js",
    )
    assert {f"advisor/_bundled/{name}" for name in inside} <= names
    assert {"advisor/demo/support.jsonl", "advisor/render/templates/report.html"} <= names


def test_the_wheel_holds_the_schemas_of_its_rules(wheel):
    """They are built with it, so they say what its own rules say."""
    folder = "advisor/_bundled/rules/schema/"
    with zipfile.ZipFile(wheel) as file:
        built = {
            name.removeprefix(folder).removesuffix(SUFFIX): json.loads(file.read(name))
            for name in file.namelist()
            if name.startswith(folder)
        }
    assert built == schemas(load_rules())


def test_the_archive_of_sources_holds_what_a_checkout_needs(built):
    """Its tests and pages, and how it is cited; nothing that git leaves out."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"tests/conftest.py", "docs/demo.svg", "CITATION.cff", "hatch_build.py"} <= names
    assert [
        name for name in names if re.search(r"__pycache__|^docs/rules|^rules/schema", name)
    ] == []


def test_both_commands_answer_and_lint_their_rules(light, tmp_path):
    """`uvx finetune-advisor` starts the command that has the package's name."""
    for name in ("advise", "finetune-advisor"):
        said = advise(light, "--version", cwd=tmp_path, name=name)
        assert said == f"advise, version {__version__}\n"
        assert "are sound" in advise(light, "rules", "lint", cwd=tmp_path, name=name)
        refused = advise(light, "demo", cwd=tmp_path, name=name, code=4)
        assert "finetune_advisor" in refused  # training needs more than the wheel


def test_the_installed_command_answers(installed, tmp_path):
    """`advise --json` works from a folder of somebody else's `rules/` and `trainers/`."""
    hostile(tmp_path)
    out = advise(installed, "--json", "--task", "qa", "--gpu", "unknown", cwd=tmp_path)
    assert json.loads(out)["recommendation"]["composition"] == "sft+lora"


def hostile(folder):
    """A folder whose own packages carry our names."""
    for name in ("trainers/__init__", "trainers/sft", "rules/__init__", "advisor/__init__"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the wrong one')")


def test_the_installed_trainers_train_beside_hostile_ones(installed, tiny_model, tmp_path):
    """A training started in a folder with its own `trainers/` runs ours."""
    hostile(tmp_path)
    (tmp_path / "train.jsonl").write_text(PAIRS)
    asked = ["--task", "qa", "--gpu", "none", "--data", "train.jsonl", "--model", tiny_model]
    short = ["--max-steps", 2, "--no-judge", "--output", "out"]
    advise(installed, "run", *asked, *short, cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"
    assert list((tmp_path / "out" / "stages" / "sft").glob("adapter_model.safetensors"))


SERVERS = [name for name, value in MANIFESTS.items() if "mcpServers" in value]


@pytest.mark.parametrize("name", SERVERS)
def test_the_command_of_each_manifest_starts_the_server(light, tmp_path, name):
    """Cold, from the wheel alone: the protocol's own client gets an answer and a resource."""
    mcp = pytest.importorskip("mcp")
    (server,) = json.loads((ROOT / name).read_text())["mcpServers"].values()
    path = f"{light / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    started = mcp.StdioServerParameters(
        command=server["command"], args=server["args"], cwd=tmp_path, env={"PATH": path}
    )

    async def talk():
        async with mcp.Client(started, mode="auto", read_timeout_seconds=60) as client:
            answers = {"answers": {"task": "qa", "gpu": "unknown"}}
            page = await client.read_resource("advise://glossary")
            return await client.call_tool("advise", answers), page.contents[0].text

    answer, glossary = asyncio.run(talk())
    assert "| word | means |" in glossary
    assert answer.structured_content["recommendation"]["composition"] == "sft+lora"


def test_without_the_extra_advice_works_and_training_names_the_line(light, tmp_path):
    """The core answers, also on a file not in UTF-8; training is code 4 with the install line."""
    row = '{{"question": "Здравствуйте, где посылка {0}?", "answer": "Она в пути, номер {0}."}}\n'
    text = "".join(row.format(n) for n in range(240))
    (tmp_path / "train.jsonl").write_bytes(text.encode("cp1251"))
    write_fake_model(tmp_path / "m", CONFIG)
    flags = ["--task", "qa", "--gpu", "none", "--data", "train.jsonl", "--model", "m"]
    assert json.loads(advise(light, "--json", *flags, cwd=tmp_path))["plan"]["model"] == "m"
    refused = advise(light, "run", *flags, cwd=tmp_path, code=4)
    assert re.search(r"pip install '.*finetune_advisor-.*\.whl\[train\]'", refused)
    assert not (tmp_path / "runs").exists()
