"""What users of other trainers suffer from, built as they meet it, through the trainer itself: each
is an error or a number here.
"""

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoTokenizer, TrainerCallback

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from tests.trainers.families import LLAMA3, family_tokenizer
from tests.trainers.runs import chat, write_rows
from tests.trainers.test_sft import plan_file
from trainers import sft
from trainers.__main__ import main
from trainers.job.files import read_json
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.say.progress import Parts
from trainers.stage.load import build_trainer, load_stage
from trainers.start import loading

LONG = "Where is my parcel with the red kettle and the blue cup? " * 12


def test_3_truncation_that_would_remove_every_answer_stops_before_training(
    make, tmp_path, unloaded
):
    """All prompts are longer than seq_len: no loss of 0.0 or NaN, but an error that says so before
    a model is loaded.
    """
    data = write_rows(
        tmp_path / "data.jsonl", [chat(f"{number} {LONG}", "Yes.") for number in range(10)]
    )
    with pytest.raises(InputError, match="no row fits into seq_len 64"):
        sft.train(make(job_data=data, seq_len=64, truncation="truncate"))


def test_6_the_end_token_is_learned_even_where_it_pads(make):
    """Padding equals the end token: in the batches that the trainer makes, the end of every answer
    still has its label, and padding has none.
    """
    callback = TrainerCallback()
    callback.store = None  # no checkpoints
    loaded = load_stage(make(seq_len=64, holdout=0.0), sft.SFT(), Parts("sft", shown=False))
    end = loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.pad_token_id == end
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=callback)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    for labels in batch["labels"].tolist():
        assert [label for label in labels if label != IGNORED][-1] == end


def test_6_generation_stops_where_training_taught_it_to(make, monkeypatch):
    """The token that ends a turn in training is among the tokens at which the saved model stops,
    also if its config named another; the template that was used is saved beside it.
    """
    load = loading.load_base

    def other_end(*args, **kwargs):
        model = load(*args, **kwargs)
        model.generation_config.eos_token_id = 0
        return model

    monkeypatch.setattr(loading, "load_base", other_end)
    job = make(update="full", learning_rate=1e-3, max_steps=2, job_judge=False)
    sft.train(job)
    own, saved = loading.load_tokenizer(job), AutoTokenizer.from_pretrained(job.output)
    assert saved.chat_template == own.chat_template
    stops = read_json(job.output / "generation_config.json")["eos_token_id"]
    assert own.eos_token_id in stops
    assert read_json(job.output / "result.json")["resolved"]["stop_tokens_added"] == ["<|im_end|>"]


def test_7_a_template_of_another_model_is_noticed(tiny_model):
    """A Llama 3 template on a tokenizer that does not know its marks: the marks are named, and
    answers still end with a real end token.
    """
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.chat_template = LLAMA3
    example = Example(row=1, messages=(Message("user", "Well?"), Message("assistant", "Yes.")))
    foreign, proper = Templater(other), Templater(family_tokenizer("llama3"))
    assert answer_row(example, foreign).labels[-1] == other.eos_token_id
    (note,) = [note for note in foreign.notes if "are no tokens of this tokenizer" in note]
    assert "<|eot_id|>" in note
    answer_row(example, proper)
    assert not proper.notes


def test_16_what_is_guessed_and_what_is_dropped_is_said(make, tmp_path, capsys):
    """Questions and answers under names of another language are taken as such, and the log says so and where
    to say which is which; rows that are left out are counted, on the screen and in result.json.
    """
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
    sft.train(job)
    found = read_json(job.output / "result.json")["data"]
    assert found["train_rows"] + found["holdout_rows"] + found["dropped"] == found["rows"] == 20
    said = capsys.readouterr().err
    assert "2 of 20 rows were left out: longer than seq_len 64 (rows 19, 20)" in said
    (note,) = [note for note in found["notes"] if "guessed from" in note]
    assert "a request in `anfrage` and its answer in `antwort`" in note
    assert "`data.mapping`" in note
    assert note in said


def test_an_error_is_shown_once_by_the_command(tmp_path, tiny_model, chats, monkeypatch, capsys):
    """Called by hand, a trainer prints its error; called by `advise run`, which shows error.json,
    it does not print it as well.
    """
    plan = plan_file(tmp_path, tiny_model, chats, seq_len=8)
    command = ["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")]
    for told, times in (("", 1), ("1", 0)):
        monkeypatch.setenv("ADVISE_TELLS_ERRORS", told)
        assert main(command) == 2
        assert capsys.readouterr().err.count("longer than seq_len 8") == times
    error = read_json(tmp_path / "run" / "stages" / "sft" / "error.json")
    assert "longer than seq_len 8" in error["what"]
