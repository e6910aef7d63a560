"""Results of runs as GGUF files: what is written, how it is called, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")

import torch

from advisor.export.exporter import exporters
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.ground.gguf import gguf_families
from tests.trainers.test_results import lora_run
from trainers.tools.gguf import export as exporting
from trainers.tools.gguf.adapter import why_no_file, write_adapter
from trainers.tools.gguf.engine import Place
from trainers.tools.gguf.export import export
from trainers.tools.gguf.family import read_config
from trainers.tools.gguf.find import LlamaCpp
from trainers.tools.gguf.tensors import neighbours

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr(exporting, "find_llama_cpp", lambda: None)


class Stub:
    """An engine that agrees with a reference, or with none of its choices."""

    what = "llama.cpp of the test"
    agrees = True

    def __init__(self, llama_cpp):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def load(self, path, *, context, adapter=None):
        assert gguf.GGUFReader(path).tensors

    def tokens(self, texts, *, whole):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.tokens_of)
        return [tokenizer(text, add_special_tokens=whole)["input_ids"] for text in texts]

    def ends(self, tokens):
        return [token == 2 for token in tokens]

    def score(self, prompt, answer, watched):
        best = [token if self.agrees else 0 for token in answer]
        return [
            Place(best=one, logprob=-1.0, watched=tuple(known))
            for one, known in zip(best, self.log_probs, strict=False)
        ]


@pytest.fixture
def engine(monkeypatch, run):
    """The export's engine is a stub; what transformers computes is what it computes."""
    original = exporting.reference_of

    class Own(Stub):
        tokens_of = run / "stages" / "sft-legal"

    def reference_of(*arguments, **keys):
        found = original(*arguments, **keys)
        answer = replace(found.answers[0], tokens=(*found.answers[0].tokens[:-1], 2), stopped=True)
        Own.log_probs = answer.log_probs
        return replace(found, answers=(answer,))

    monkeypatch.setattr(exporting, "Process", Own)
    monkeypatch.setattr(exporting, "reference_of", reference_of)
    monkeypatch.setattr(exporting, "find_llama_cpp", lambda: LlamaCpp(library=Path("x"), what="x"))
    monkeypatch.setattr("trainers.tools.gguf.reference.LONGEST_ANSWER", 8)
    monkeypatch.setattr("trainers.tools.gguf.reference.ANSWER_TOKENS", 4)
    return Own


def test_a_proved_file_has_its_name_and_a_record(run, engine, tmp_path):
    """The merged model is gone afterwards; a second export does not overwrite it."""
    said: list[str] = []
    (one,) = export(run, tmp_path / "out", only=None, kind="", device=CPU, say=said.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "proof.json",
        one.file,
    ]
    assert one.file == f"{run.name}-F16.gguf"
    text = "\n".join(said)
    assert "merged into the original weights" in text
    assert "proved with llama.cpp of the test" in text
    assert f"llama-server -m {tmp_path / 'out' / one.file} --jinja" in text
    (record,) = json.loads((tmp_path / "out" / "proof.json").read_text())["files"]
    assert (record["proved"], record["role"], record["kind"]) == (True, "model", "F16")
    with pytest.raises(InputError, match="is already there"):
        export(run, tmp_path / "out", only=None, kind="", device=CPU, say=said.append)


def test_a_failed_proof_shows_in_the_name_and_the_exit_code(run, engine, tmp_path):
    """Exit code 5, as for a merged model that differs; what differs is said."""
    engine.agrees = False
    said: list[str] = []
    with pytest.raises(TrainingFailed, match="1 of 1 files are not the model") as error:
        export(run, tmp_path / "out", only=None, kind="Q8_0", device=CPU, say=said.append)
    assert error.value.exit_code == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "proof.json",
        f"{run.name}-Q8_0.unproved.gguf",
    ]
    assert any("not proved: only 0.0%" in line for line in said)


def test_without_llama_cpp_the_file_is_called_unproved(run, nowhere, tmp_path):
    """Exit code 4 and what to install."""
    with pytest.raises(MachineNotReady, match="nothing is proved") as error:
        export(run, tmp_path / "out", only=None, kind="", device=CPU, say=print)
    assert "npm install node-llama-cpp" in error.value.text()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["proof.json", f"{run.name}-F16.unproved.gguf"]


def test_several_tasks_become_one_base_and_an_adapter_each(nowhere, tiny_model, tmp_path):
    """With the numbers of each adapter; `--only` merges one of them instead."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1, "hr": 2})
    with pytest.raises(MachineNotReady):
        export(run, tmp_path / "out", only=None, kind="", device=CPU, say=print)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gguf")) == [
        "run-base-F16.unproved.gguf",
        "run-hr-adapter.unproved.gguf",
        "run-legal-adapter.unproved.gguf",
    ]
    with pytest.raises(MachineNotReady):
        export(run, tmp_path / "one", only="hr", kind="", device=CPU, say=print)
    assert [path.name for path in (tmp_path / "one").glob("*.gguf")] == ["run-F16.unproved.gguf"]


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, 8 / 4), ({"use_rslora": True}, 8 / 2), ({"alpha_pattern": {"q_proj": 12}}, 12 / 4)],
    ids=["plain", "rank-stabilised", "alpha-of-a-layer"],
)
def test_an_adapter_multiplies_as_peft_does(changes, scale, run, tiny_model, tmp_path):
    """llama.cpp multiplies by alpha / rank of the file; what differs is in the second matrix."""
    import shutil

    from safetensors.torch import load_file

    folder = tmp_path / "adapter"
    shutil.copytree(run / "stages" / "sft-legal", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    config = read_config(str(tiny_model))
    family = gguf_families()["llama"]
    assert why_no_file(folder, family, config) == ""
    write_adapter(folder, tmp_path / "out.gguf", family, config, name="x")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    alpha = reader.get_field("adapter.lora.alpha").contents()
    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    a, b = (tensors[f"blk.0.attn_q.weight.lora_{which}"] for which in "ab")
    theirs = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    expected = scale * theirs[name.format("B")] @ theirs[name.format("A")]
    torch.testing.assert_close(alpha / 4 * b @ a, neighbours(expected, 4))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
    ],
)
def test_an_adapter_that_gguf_cannot_hold_says_why(changes, why, run, tiny_model, tmp_path):
    """Each task becomes a whole model then."""
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(run / "stages" / "sft-legal", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    config = read_config(str(tiny_model))
    assert why in why_no_file(folder, gguf_families()["llama"], config)


@pytest.mark.parametrize("update", ["prefix", "adapter"])
def test_what_adds_layers_is_refused(update, nowhere, tiny_model, tmp_path):
    """With what can be done, before anything is written."""
    run = lora_run(tmp_path / "run", tiny_model, {"legal": 1}, update=update)
    with pytest.raises(InputError, match="a GGUF file cannot hold it") as error:
        export(run, tmp_path / "out", only=None, kind="", device=CPU, say=print)
    assert "serve it with transformers and PEFT" in error.value.text()
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_not_there_is_said(run, nowhere, tmp_path):
    """With those that are."""
    with pytest.raises(InputError, match="no such result") as error:
        export(run, tmp_path / "out", only="hr", kind="", device=CPU, say=print)
    assert "legal" in error.value.text()


def test_a_full_disk_is_said_before_anything_is_computed(run, nowhere, tmp_path, monkeypatch):
    """Merged model and file need room at the same time."""
    monkeypatch.setattr("trainers.tools.gguf.write.free_bytes", lambda path: 1000)
    with pytest.raises(MachineNotReady, match=r"needs about .* MiB, and 0\.0 MiB are free"):
        export(run, tmp_path / "out", only=None, kind="", device=CPU, say=print)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- the command


@pytest.mark.light
@pytest.mark.parametrize("to", ["merged:Q8_0", "gguf:"])
def test_a_variant_that_a_form_does_not_have_is_refused(call, to):
    """Exit code 2."""
    code, _, err = call("export", "--to", to)
    assert (code, "has no variant" in err) == (2, True)


@pytest.mark.light
def test_the_type_of_file_goes_to_the_tool_and_a_killed_one_leaves_nothing(tmp_path, monkeypatch):
    """Temporary files are removed whatever became of it."""
    from advisor.export.exporter import Wanted

    monkeypatch.setattr("advisor.export.gguf.device_of", lambda folder: "cpu")
    out = tmp_path / "out"
    seen: list[tuple[str, ...]] = []

    def killed(*arguments):
        seen.append(arguments)
        (out / ".advise-tmp-merged").mkdir(parents=True)
        (out / ".advise-tmp-x.gguf").write_text("half")
        raise KeyboardInterrupt

    wanted = Wanted(
        source=tmp_path, out=out, only="hr", say=print, run_tool=killed, variant="Q4_K_M"
    )
    with pytest.raises(KeyboardInterrupt):
        exporters()["gguf"].export(wanted)
    assert not out.exists()
    assert seen[0][0] == "gguf"
    assert seen[0][-4:] == ("--kind", "Q4_K_M", "--only", "hr")
