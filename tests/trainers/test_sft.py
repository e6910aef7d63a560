"""Supervised fine-tuning of a tiny model, and what users of other trainers suffer from."""

import errno
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from msgspec import structs

from advisor.ground.errors import InputError
from tests.trainers.runs import trained
from trainers import cpt
from trainers.start.loading import load_tokenizer

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState

from advisor.data.example import Example, Message
from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.plan.model import Launch
from tests.trainers.conftest import plan_file
from tests.trainers.families import LLAMA3, family_tokenizer
from tests.trainers.runs import break_at, losses, same, weights, write_rows
from trainers import sft
from trainers.__main__ import main
from trainers.job import libraries
from trainers.job.files import read_json
from trainers.job.job import TRAINING, Process
from trainers.keep import results
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.say.progress import Parts
from trainers.stage.load import build_trainer, load_stage
from trainers.start import loading


def test_lora_learns_and_loads_in_plain_peft(make, monkeypatch):
    """It records everything, sends no usage ping, and leaves an adapter that changes the base."""
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("telemetry")
    )
    job = make(max_steps=12, rank=8, trl={"adam_beta2": 0.95})
    result = trained(job)
    assert (result["status"], result["steps"], len(losses(job))) == ("done", 12, 12)
    assert result["loss_last"] < 0.9 * result["loss_first"]
    found, data = result["evaluation"], result["data"]
    assert found["holdout_loss_after"] < found["holdout_loss_before"]
    assert found["perplexity_before"] == pytest.approx(math.exp(found["holdout_loss_before"]))
    assert data["train_rows"] + data["holdout_rows"] == data["rows"] == 30
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    # On the CPU it is how much the process has grown, which is nothing after other tests.
    assert result["measured"]["peak_bytes"] >= 0
    options, trl, peft = (result["resolved"][name] for name in ("options", "trl", "peft"))
    assert (options["rank"], trl["adam_beta2"], peft["lora_alpha"]) == (8, 0.95, 16)
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    assert tokenizer.chat_template
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_qlora_trains_on_the_cpu(make):
    """A 4-bit base trains on the CPU through the same code, its module in float32."""
    result = trained(make(quantization="nf4", max_steps=8))
    assert result["loss_last"] < result["loss_first"]
    found = result["resolved"]
    assert (found["trainable_dtype"], found["double_quantization"]) == ("float32", True)


def test_a_loss_that_is_not_finite_ends_the_run(make, monkeypatch):
    """NaN ends the run with exit code 5 and saves nothing."""
    job = make(max_steps=40, job_judge=False)
    model = loading.load_base(job, torch.device("cpu"))
    model.model.norm.weight.data[0] = float("nan")
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: model)
    with pytest.raises(TrainingFailed, match="loss became nan at step 1") as caught:
        sft.train(job)
    assert caught.value.exit_code == 5
    assert not [
        path for name in ("result.json", "*.safetensors") for path in job.output.rglob(name)
    ]


def test_a_moved_split_and_damaged_run_goes_on(
    make, monkeypatch, capsys, tmp_path, tiny_model, approved
):
    """A moved, split run under another torch goes on from the checkpoint before a damaged one."""
    keys = {"max_steps": 10, "save_steps": 2, "job_judge": False}
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=tmp_path / "broken")
    break_at(7, broken, monkeypatch)
    newest = broken.checkpoints / "checkpoint-6" / "adapter_model.safetensors"
    *content, last = newest.read_bytes()
    newest.write_bytes(bytes([*content, last ^ 1]))
    with (broken.run / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n{"stage": "sft", "step": "x"}\n\xff\xfe\n{"st')
    shutil.copytree(tiny_model, tmp_path / "model-2")
    broken.run.rename(tmp_path / "moved")
    small = make(**keys | {"micro_batch_size": 2, "grad_accum": 2}, job_run=tmp_path / "moved")
    moved = replace(small, plan=structs.replace(small.plan, model=str(tmp_path / "model-2")))
    found = libraries.check_versions(quantized=False)
    versions = {**found, "torch": "9.9.9"}
    monkeypatch.setattr("trainers.stage.load.check_versions", lambda **_: versions)
    capsys.readouterr()
    result = trained(moved)
    said = capsys.readouterr().err
    said = said.replace(found["torch"], "TORCH")
    approved(re.findall(r".*(?:checkpoint-|metrics|resuming|beginning).*", said))
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(moved)[:4] == losses(whole)[:4]
    assert result["loss_first"] == losses(whole)[0]


def test_when_checkpoints_are_written_may_change_on_the_way(make, monkeypatch, tmp_path, capsys):
    """The run goes on from the last one, and its result has the same bytes."""
    keys = {"max_steps": 8, "dropout": 0.1, "job_judge": False}
    whole = make(**keys, save_steps=8)
    trained(whole)
    broken = make(**keys, save_steps=3, job_run=tmp_path / "broken")
    break_at(5, broken, monkeypatch)
    later = make(**keys, save_steps=1, save_minutes=None, job_run=tmp_path / "broken")
    capsys.readouterr()
    trained(later)
    assert "resuming after step 3 of 8" in capsys.readouterr().err
    assert losses(later) == losses(whole)
    assert same(weights(whole), weights(later))
    kept = sorted(path.name for path in later.checkpoints.glob("checkpoint-*"))
    assert kept == ["checkpoint-7", "checkpoint-8"]


def test_checkpoints_of_other_settings_are_not_resumed(make, monkeypatch, capsys):
    """Another learning rate in the same folder starts from the beginning, and is named."""
    first = make(max_steps=4, save_steps=2, job_judge=False)
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_result", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(first)
    capsys.readouterr()
    job = make(max_steps=4, save_steps=2, learning_rate=1e-3, job_judge=False)
    trained(job)
    said = capsys.readouterr().err
    for step in (2, 4):
        assert f"checkpoint-{step} is not used: learning_rate 0.01 -> 0.001" in said
    assert len(losses(job)) == 4


def test_an_adapter_without_effect_fails(make, tmp_path):
    """Under --max-steps it is a warning; training has to change a prefix from its start."""
    keys = {"warmup": 0.5, "job_judge": False}  # the first step is at learning rate 0
    for update in ("lora", "prefix"):
        with pytest.raises(TrainingFailed, match="has no effect"):
            sft.train(make(update=update, max_steps=1, scheduler="linear", **keys))
    result = trained(make(max_steps=5, **keys, job_max_steps=1, job_run=tmp_path / "capped"))
    assert [check["ok"] for check in result["checks"]][:2] == [True, False]


def test_a_dry_run_measures_and_saves_nothing(make):
    """Two steps on the longest batch and an evaluation give memory and time, no weights."""
    job = make(grad_accum=4, max_steps=50, job_dry_run=True)
    sft.train(job)
    record = read_json(job.output / "dry_run.json")
    measured = record["measured"]
    found = (measured["counter"], len(record["losses"]), record["steps"])
    assert found == ("rss_growth", 2, 50)
    assert min(measured["peak_bytes"], record["evaluation_loss"]) > 0
    assert not list(job.run.rglob("*.safetensors"))


def test_a_plan_for_a_gpu_is_refused_without_one(make):
    """launch.device: cuda on a machine that cannot use it is exit 4, never training on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    job = make()
    cuda = structs.replace(job.plan, launch=Launch(device="cuda"))
    with pytest.raises(MachineNotReady, match=r"the plan is for a GPU .*without CUDA|0 usable"):
        sft.train(replace(job, plan=cuda))


def test_a_disk_that_is_full_at_the_last_file_of_a_checkpoint_says_so(make, monkeypatch):
    """Also where it is the library that writes the file; nothing of the checkpoint stays."""
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(TrainerState, "save_to_json", full)
    job = make(max_steps=1, job_judge=False)
    with pytest.raises(MachineNotReady, match=r"no space left to write it\n.*takes more than"):
        sft.train(job)
    assert list(job.checkpoints.iterdir()) == []


@pytest.fixture
def command(tiny_model, chats, tmp_path, monkeypatch):
    """`command(train=None, **keys)`: exit code and error.json of a stage, with `train` if given."""

    def run(train=None, **keys):
        plan = plan_file(tmp_path, tiny_model, chats, **keys)
        if train:
            monkeypatch.setattr(sft, "train", train)
        words = ["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")]
        return main(words), read_json(tmp_path / "run" / "stages" / "sft" / "error.json")

    return run


@pytest.mark.parametrize(
    "keys",
    [{"train_embeddings": True}, {"update": "prefix", "peft": {"modules_to_save": ["norm"]}}],
)
def test_a_task_begins_from_the_base_as_it_was_loaded(make, tmp_path, keys):
    """The same task has the same weights twice in a process, with trained embeddings too."""
    process, found = Process(bases={}), []
    for name in ("one", "two"):
        job = make(**keys, job_run=tmp_path / name)
        trained(replace(job, process=process))
        found.append(weights(job))
    assert len(process.bases) == 1
    assert same(*found)


@pytest.mark.parametrize(("told", "times"), [("", 1), ("1", 0)], ids=["by hand", "by advise run"])
def test_failures_leave_a_record_and_their_exit_code(
    told, times, command, unloaded, monkeypatch, capsys, approved
):
    """error.json and stderr say the same, unless `advise run` is to show the file."""
    monkeypatch.setenv("ADVISE_TELLS_ERRORS", told)
    code, record = command(seq_len=8)
    approved([code, record])
    assert capsys.readouterr().err.count("longer than seq_len 8") == times


def test_bugs_have_a_log_and_lack_of_memory_the_next_smaller_setting(command, approved):
    """A bug is exit 70 with a traceback, lack of memory exit 5 with what changes least."""

    def full(job):
        job.enter(TRAINING)
        raise MemoryError("no room")

    code, found = command(Mock(side_effect=RuntimeError("surprise")))
    assert code == 70 == found["exit_code"]
    assert "surprise" in Path(found["hint"].split()[-1]).read_text()
    code, found = command(full, micro_batch_size=8)
    approved([code, found])


LONG = "Where is my parcel with the red kettle and the blue cup? " * 12


def test_6_the_end_token_is_learned_even_where_it_pads(make):
    """Where padding equals the end token, ends of answers have labels and padding has none."""
    callback = TrainerCallback()
    callback.store = None  # no checkpoints
    loaded = load_stage(make(seq_len=64, holdout=0.0), sft.SFT(), Parts("sft", shown=False))
    end = loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.pad_token_id == end
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=callback)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    learned = [[one for one in labels if one != IGNORED] for labels in batch["labels"].tolist()]
    assert {labels[-1] for labels in learned} == {end}


def test_6_generation_stops_where_training_taught_it_to(make, monkeypatch):
    """The saved model stops at the trained turn's end, whatever its config named before."""
    job = make(update="full", learning_rate=1e-3, max_steps=2, job_judge=False)
    model = loading.load_base(job, torch.device("cpu"))
    model.generation_config.eos_token_id = 0
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: model)
    resolved = trained(job)["resolved"]
    own, saved = loading.load_tokenizer(job), AutoTokenizer.from_pretrained(job.output)
    assert saved.chat_template == own.chat_template
    assert own.eos_token_id in read_json(job.output / "generation_config.json")["eos_token_id"]
    assert resolved["stop_tokens_added"] == ["<|im_end|>"]


def test_7_a_template_of_another_model_is_noticed(tiny_model, approved):
    """Marks that the tokenizer does not know are named, and answers end with a real end token."""
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.chat_template = LLAMA3
    example = Example(row=1, messages=(Message("user", "Well?"), Message("assistant", "Yes.")))
    foreign, proper = Templater(other), Templater(family_tokenizer("llama3"))
    assert answer_row(example, foreign).labels[-1] == other.eos_token_id
    answer_row(example, proper)
    approved([foreign.notes, proper.notes])


def test_16_what_is_guessed_and_what_is_dropped_is_said(make, tmp_path, capsys, approved):
    """The log says which columns were guessed and how to set them; left-out rows are counted."""
    rows = [
        {
            "anfrage": f"Question {number}, is it so? " + LONG * (number >= 18),
            "antwort": f"Answer {number}, it is so.",
            "gamma": number * 1.5,
        }
        for number in range(20)
    ]
    data = write_rows(tmp_path / "data.jsonl", rows)
    job = make(
        job_data=data, seq_len=64, truncation="drop", max_steps=2, warmup=0.0, job_judge=False
    )
    found = trained(job)["data"]
    assert found["train_rows"] + found["holdout_rows"] + found["dropped"] == found["rows"] == 20
    said = capsys.readouterr().err
    approved(found["notes"])
    assert [note for note in found["notes"] if note not in said] == []


SENTENCES = (
    "The red kettle boils water for tea.",
    "A cup stands on the shelf in the shop.",
    "Every parcel is packed by hand in the morning.",
)


def corpus(folder, name="corpus", documents=40, words=SENTENCES):
    """A folder of short text files, each a document."""
    target = folder / name
    target.mkdir()
    for number in range(documents):
        said = " ".join(words[(number + step) % len(words)] for step in range(8))
        (target / f"{number:03}.txt").write_text(f"Number {number}. {said}\n")
    return target


@pytest.fixture
def read(make):
    """A job that reads a corpus."""
    small = {
        "packing": True, "holdout": 0.2, "seq_len": 96, "update": "full", "objective": "cpt",
        "learning_rate": 3e-3, "max_steps": 12,
    }  # fmt: skip
    return lambda path, **keys: make(**{**small, **keys}, job_data=path)


@pytest.mark.parametrize(("update", "rate"), [("full", 3e-3), ("lora", 2e-2)])
def test_perplexity_of_held_out_documents_falls(read, tmp_path, update, rate):
    """Unseen documents become likelier, with an interval without zero; no answers are generated."""
    found = trained(read(corpus(tmp_path), update=update, learning_rate=rate))
    evaluation = found["evaluation"]
    assert evaluation["perplexity_after"] < evaluation["perplexity_before"]
    assert evaluation["holdout_loss_interval"][1] < 0
    assert (found["verdict"]["word"], evaluation["samples"]) == ("better", [])


def test_general_text_is_mixed_in_by_share(read, tmp_path):
    """A fifth of the tokens come from the replay file, counted and told; without it none do."""
    path = corpus(tmp_path)
    general = corpus(tmp_path, "general", words=("Once upon a time there was a king.",))
    tokenizer = load_tokenizer(read(path))
    alone = cpt.CPT().rows(read(path), tokenizer)
    mixed = cpt.CPT().rows(read(path, replay=str(general), replay_share=0.2), tokenizer)
    own = sum(row.tokens for row in alone.train)
    added = sum(row.tokens for row in mixed.train) - own
    assert 0.18 < added / (own + added) < 0.26
    assert any("general text mixed in" in note for note in mixed.notes)
    assert list(alone.holdout) == list(mixed.holdout)


def test_a_corpus_shorter_than_one_sequence_is_refused(read, tmp_path):
    """With how many tokens there are and what to do."""
    with pytest.raises(InputError, match="fewer than one sequence"):
        cpt.train(read(corpus(tmp_path, documents=2), seq_len=1000, holdout=0.0))
