"""What is said once a result is merged."""

from __future__ import annotations

import pytest

from advisor.export.exporter import ExportRequest
from advisor.extras.merged.extra import export


@pytest.mark.parametrize("code", [0, 4])
def test_a_merged_result_names_the_page_that_says_how_to_serve_it(tmp_path, monkeypatch, code):
    """The next step, in the words of the current folder; a failure has its own."""
    page = tmp_path / "run" / "stages" / "sft" / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advisor.extras.merged.extra.device_of", lambda folder: "cpu")
    said: list[str] = []
    wanted = ExportRequest(
        source=tmp_path / "run",
        out=None,
        only=None,
        say=said.append,
        run_tool=lambda name, *arguments: code,
    )
    assert export(wanted) == code
    assert said == ([] if code else ["How to serve it:  run/stages/sft/README.md"])
