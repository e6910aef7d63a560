"""A finished run is checked before it is called finished, and no stage starts from a damaged
result.
"""

import os

import pytest

from advisor.launch import earlier
from tests.launch.conftest import PLAN, SECOND, refused, run

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def result(shop):
    """The folder of the result of a finished run in `out`."""
    return run(output="out").folder / "stages" / "sft"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (WEIGHTS, cut, "has 33 bytes and had 66 when it was saved"),
        (WEIGHTS, flip, "has other content than when it was saved"),
        ("adapter_config.json", flip, "has other content than when it was saved"),
        ("adapter_config.json", os.remove, "is gone"),
    ],
)
def test_a_damaged_result_is_never_called_finished(shop, result, capsys, name, damage, said):
    """Exit code 2 with the file and the command that trains the stage again, which then works."""
    damage(result / name)
    before = (shop / "out" / "run.json").read_bytes()
    capsys.readouterr()
    for plan in ("plan.yaml", "out", "out/plan.yaml"):
        text = refused(plan=plan, output=None if plan != "plan.yaml" else "out")
        assert f"out/stages/sft/{name} {said}: the result of stage sft is damaged" in text
    assert "finished" not in capsys.readouterr().err
    assert (shop / "out" / "run.json").read_bytes() == before
    hint = "train the stage again from the beginning: rm out/stages/sft/*.safetensors && advise run"
    assert hint in text
    for path in result.glob("*.safetensors"):
        path.unlink()
    assert not run("out").already_done
    assert run("out").already_done


def test_a_file_that_people_adapt_may_be_changed(result, capsys):
    """Settings of the tokenizer that were edited afterwards are told, and the run is finished."""
    (result / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    assert run(output="out").already_done
    said = capsys.readouterr().err
    assert "warning: out/stages/sft/tokenizer_config.json was changed after training" in said


def test_no_stage_starts_from_a_damaged_result(shop, monkeypatch):
    """The second stage is refused, also by --only, while the first one's result is damaged."""
    (shop / "plan.yaml").write_text(PLAN + SECOND)
    run(output="out", only="sft")
    flip(shop / "out" / "stages" / "sft" / WEIGHTS)
    for only in (None, "second"):
        assert "the result of stage sft is damaged" in refused(output="out", only=only)
    assert not (shop / "out" / "stages" / "second").exists()


def test_results_are_read_only_if_they_were_touched(shop, result, monkeypatch):
    """Gigabytes are not hashed at each call: files older than the end of their stage are known."""
    reads = []
    original = earlier.file_digest
    monkeypatch.setattr(
        earlier, "file_digest", lambda path: reads.append(path.name) or original(path)
    )
    finished_ns = max(path.stat().st_ctime_ns for path in result.iterdir())
    monkeypatch.setattr(earlier, "_finished_ns", lambda stage: finished_ns)
    assert run(output="out").already_done
    assert reads == []
    flip(result / WEIGHTS)
    assert "damaged" in refused(output="out")
    assert reads == [WEIGHTS]
