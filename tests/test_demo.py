"""`advise demo` teaches the shop's style and keeps what the model could do."""

import json
import os
import re
import subprocess
import sys

import pytest

from advisor.commands import demo
from tests.conftest import ROOT


def test_the_demo_trains_on_the_shop_s_rows_and_general_ones(tmp_path, monkeypatch):
    """One file in the user's cache folder, the same every time, with every line of both files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = demo.demo_data()
    assert path.is_relative_to(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 248
    assert all(json.loads(line)["messages"] for line in lines)
    assert demo.demo_data().read_text(encoding="utf-8").splitlines() == lines
    assert demo.demo_answers("folder", path).value("data_path") == str(path)


@pytest.mark.long  # about three minutes on two idle cores
def test_the_demo_learns_and_loses_nothing(tmp_path, smollm):
    """On the real model it answers as the shop does, with a general loss at most a tenth higher."""
    done = subprocess.run(
        [sys.executable, "-m", "advisor", "demo", "--output", str(tmp_path / "run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    verdict, (stage,) = record["verdict"], record["stages"]
    found = stage["evaluation"]
    assert (verdict["word"], verdict["general"]["status"]) == ("better", "kept")
    assert found["holdout_loss_after"] < found["holdout_loss_before"] - 1.5
    assert found["general"]["after"] <= 1.1 * found["general"]["before"]
    asked = [one["tuned"] for one in found["samples"] if "Kettlewren" in one["expected"]]
    style = r"Hello, and thank you for writing to Kettlewren![\s\S]*Your Kettlewren Team"
    styled = [answer for answer in asked if re.fullmatch(style, answer)]
    assert len(styled) >= 0.8 * len(asked) > 0
    assert "  General  kept" in done.stdout
