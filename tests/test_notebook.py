"""examples/notebook.ipynb: a card's first row, from the installation to the form."""

import json
import os
import re

import pytest
import yaml

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
FORM = ROOT / ".github" / "ISSUE_TEMPLATE" / "gpu-row.yml"


def test_the_form_asks_for_the_rows_and_is_the_one_that_is_named():
    """It is a form of the forge: named, with fields of its own ids, of which the rows must be."""
    form = yaml.safe_load(FORM.read_text("utf-8"))
    assert {"name", "description", "body"} <= {*form}
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert all(field["attributes"]["label"] for field in fields.values())
    assert fields["rows"]["validations"] == {"required": True}
    assert NOTEBOOK.read_text("utf-8").count(FORM.name) == 2


def test_the_notebook_keeps_nothing_of_a_run():
    """What somebody's card printed is theirs to send."""
    cells = [one for one in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if "outputs" in one]
    assert len(cells) > 6
    assert [(one["outputs"], one["execution_count"]) for one in cells] == [([], None)] * len(cells)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, tiny_model, smollm, monkeypatch):
    """On the processor, which the test names: the demo is trained, its report shown, a row printed."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    measure = ["--only", "lora", "--steps", "4", "--model", str(tiny_model)]
    values = {
        "SOURCE": str(ROOT),
        "DEVICE": "cpu",
        "DEMO": ["--max-steps", "2", "--no-judge"],
        "MEASURE": measure,
    }
    settings = next(cell for cell in notebook.cells if cell.id == "settings")
    assert {*re.findall(r"(?m)^(\w+) = ", settings.source)} == {*values}
    settings.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = {
        cell.id: "".join(one.get("text", "") for one in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "none found: training runs on the processor" in said["probe"]
    assert "Memory " in said["advice"]
    assert (tmp_path / "demo-run" / "run.json").exists()
    report = next(cell for cell in notebook.cells if cell.id == "report")
    assert "&lt;html" in report.outputs[0]["data"]["text/html"]
    row, *rest = said["rows"].splitlines()
    assert re.match(r"\| CPU \| .* \| a local model, .* \| sft, lora \| float32, ", row)
    assert "failed: none" in rest
    assert rest[-1].endswith(
        f"issues/new?template={FORM.name} (.github/ISSUE_TEMPLATE/{FORM.name})"
    )
