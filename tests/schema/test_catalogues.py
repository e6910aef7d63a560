"""`advise rules lint` reads every file below rules/ that a command reads."""

import json
import shutil
import subprocess
import sys

import pytest

from advisor.ground.resources import rules_dir
from advisor.probe import gpu_files
from advisor.schema import build as catalogues
from advisor.situation import catalogue

GPU = """version: 1
gpus:
  acme-one:
    name: "Acme One"
    bandwith_gb_s: 100
"""
MODEL = 'version: 1\nchecked: "2026-11-25"\nmodels:\n  acme/one:\n    lisence: mit\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Hardware, prices and models, to be changed."""
    for name in ("hardware", "prices", "models", "remedies"):
        shutil.copytree(rules_dir() / name, tmp_path / "rules" / name)
    for module in (gpu_files, catalogue, catalogues):
        monkeypatch.setattr(module, "rules_dir", lambda: tmp_path / "rules")
    cached = (gpu_files.catalogue_gpus, catalogue.organisation_models)
    for function in cached:
        function.cache_clear()
    yield tmp_path / "rules"
    for function in cached:
        function.cache_clear()


def test_the_shipped_files_have_no_fault():
    """Each reader takes what is shipped."""
    assert catalogues.catalogue_faults() == ()


def test_every_fault_of_hardware_prices_and_models_is_told(call, folder):
    """All at once, each with its line and the nearest name."""
    (folder / "hardware" / "x.yaml").write_text(GPU)
    (folder / "prices" / "x.yaml").write_text("version: 1\non_demand_usd_per_h: {acme-two: {}}\n")
    (folder / "models" / "acme.yaml").write_text(MODEL)
    code, out, _ = call("rules", "lint")
    assert code == 2
    told = " ".join(out.split())
    for expected in (
        "rules/hardware/x.yaml:1:1 error: `vendor` is missing",
        "rules/hardware/x.yaml:5:5 error: unknown key 'bandwith_gb_s'",
        "did you mean 'bandwidth_gb_s'?",
        "rules/prices/x.yaml:2:23 error: unknown GPU 'acme-two'",
        "rules/models/acme.yaml:5:5 error: unknown key 'lisence'",
    ):
        assert expected in told, told[:3000]


LISTED = """import json, sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
from advisor.schema.build import catalogue_faults
from advisor.ruleset.load import load_rules
load_rules(), catalogue_faults()
print(json.dumps(opened))
"""


def test_every_file_below_rules_is_read():
    """No file that a command may read is left out."""
    done = subprocess.run(
        [sys.executable, "-c", LISTED], capture_output=True, text=True, check=True
    )
    folder = rules_dir()
    files = {str(path) for path in folder.rglob("*.yaml") if path.parent != folder / "scenarios"}
    assert len(files) > 100
    assert files - set(json.loads(done.stdout)) == {str(folder / "refresh.yaml")}
