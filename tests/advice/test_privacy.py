"""To people who say that privacy comes first, the answer says what leaves their machine."""

import pytest

from advisor.ground.types import Hardware
from advisor.render.answer.page import LINES, OVER, first_screen, page_of
from advisor.situation.build import situation_of
from tests.advice.situations import advice_on, stated
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG

HERE = Hardware(
    kind="cpu", origin="probed", cpu_cores=8, ram_total_bytes=64 << 30, ram_free_bytes=60 << 30
)
SUPPORT = {
    "task": "customer_service",
    "data_kind": "paired",
    "data_rows": 1000,
    "data_tokens": 200_000,
}
DOWNLOADED = "; the model's files are downloaded."


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (SUPPORT, f"Nothing leaves this machine{DOWNLOADED}"),
        ({**SUPPORT, "model": "model"}, "Nothing leaves this machine."),
        (
            {**SUPPORT, "gpu": "RTX 4090"},
            f"Rows and model go to the machine with the RTX 4090; if it is rented, to its provider{DOWNLOADED}",
        ),
        (
            {**SUPPORT, "gpu": "unknown"},
            f"Rows and model go to the machine with a GPU; if it is rented, to its provider{DOWNLOADED}",
        ),
        (
            {**SUPPORT, "gpu": "unknown", "budget_usd": 50},
            f"Rows and model go to the provider of the GPU that you rent{DOWNLOADED}",
        ),
        (
            {"task": "qa", "data_kind": "none"},
            "Nothing leaves this machine; the models and programs named here are downloaded.",
        ),
    ],
)
def test_one_line_says_what_leaves_the_machine(tmp_path, monkeypatch, known, says):
    """On the first screen and in the whole answer; without that priority there is no such line."""
    monkeypatch.chdir(tmp_path)
    write_fake_model(tmp_path / "model", CONFIG)
    for priority, lines in (("privacy", [says]), ("quality", [])):
        advice = advice_on(situation_of(stated(**known, priority=priority), probed=HERE))
        first = first_screen(advice)
        assert [item.text for item in first.labelled.get("Privacy", ())] == lines
        assert first.lines(80) <= LINES + OVER
        whole = repr(page_of(advice).sections)
        assert (f"Privacy: {says.removesuffix('.')}" in whole) is bool(lines)
