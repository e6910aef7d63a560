"""What users of other trainers suffer from, built as they meet it, through the trainer itself: each
is an error or a number here.
"""

import json
from copy import deepcopy

import pytest

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from tests.trainers.families import LLAMA3, family_tokenizer
from trainers import sft
from trainers.__main__ import main
from trainers.job.files import read_json
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.start.loading import load_tokenizer


@pytest.fixture
def file(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def chat(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


LONG = "Where is my parcel with the red kettle and the blue cup? " * 12


def test_3_truncation_that_would_remove_every_answer_stops_before_training(make, file, monkeypatch):
    """All prompts are longer than seq_len: no loss of 0.0 or NaN, but an error that says so before
    a model is loaded.
    """
    import trainers.start.loading as loading

    monkeypatch.setattr(
        loading, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    job = make(
        job_data=file([chat(f"{number} {LONG}", "Yes.") for number in range(10)]),
        seq_len=64,
        truncation="truncate",
    )
    with pytest.raises(InputError, match="no row fits into seq_len 64"):
        sft.train(job)


def test_4_what_was_dropped_is_in_the_result(make, file, capsys):
    """truncation: drop leaves rows out with a count, on the screen and in result.json, and each row
    is accounted for.
    """
    rows = [chat(f"Question {number}?", "Yes.") for number in range(18)] + [
        chat(f"{number} {LONG}", "Yes.") for number in range(2)
    ]
    job = make(
        job_data=file(rows), seq_len=64, truncation="drop", max_steps=2, warmup=0.0, job_judge=False
    )
    sft.train(job)
    data = read_json(job.output / "result.json")["data"]
    assert data["train_rows"] + data["holdout_rows"] + data["dropped"] == data["rows"] == 20
    assert (
        "2 of 20 rows were left out: longer than seq_len 64 (rows 19, 20)"
        in capsys.readouterr().err
    )


def test_6_the_end_token_is_learned_even_where_it_pads(make):
    """Padding equals the end token: in the batches that the trainer makes, the end of every answer
    still has its label, and padding has none.
    """
    from trainers.say.progress import Parts
    from trainers.stage.load import build_trainer, load_stage

    loaded = load_stage(make(seq_len=64, holdout=0.0), sft.SFT(), Parts("sft", shown=False))
    tokenizer = loaded.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=_Silent())
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels, seen in zip(
        batch["input_ids"].tolist(),
        batch["labels"].tolist(),
        batch["attention_mask"].tolist(),
        strict=True,
    ):
        learned = [label for label in labels if label != IGNORED]
        assert learned[-1] == tokenizer.eos_token_id
        assert all(label == IGNORED for label, there in zip(labels, seen, strict=True) if not there)
        assert len(ids) == len(labels)


def test_6_generation_stops_where_training_taught_it_to(make, monkeypatch):
    """The token that ends a turn in training is among the tokens at which the saved model stops,
    also if its config named another.
    """
    import trainers.start.loading as loading

    load = loading.load_base

    def other_end(*args, **kwargs):
        model = load(*args, **kwargs)
        model.generation_config.eos_token_id = 0
        return model

    monkeypatch.setattr(loading, "load_base", other_end)
    job = make(update="full", learning_rate=1e-3, max_steps=2, job_judge=False)
    sft.train(job)
    tokenizer = load_tokenizer(job)
    assert (
        tokenizer.eos_token_id
        in json.loads((job.output / "generation_config.json").read_text())["eos_token_id"]
    )
    assert read_json(job.output / "result.json")["resolved"]["stop_tokens_added"] == ["<|im_end|>"]


def test_7_the_models_own_template_is_used_and_saved(make):
    """No plan key puts another model's template on a model; the one in use is saved beside the
    adapter.
    """
    from transformers import AutoTokenizer

    job = make(max_steps=2, job_judge=False)
    sft.train(job)
    assert (
        AutoTokenizer.from_pretrained(job.output).chat_template == load_tokenizer(job).chat_template
    )
    with pytest.raises(
        InputError,
        match="'chat_template_path' cannot be set: the model's own chat template is used",
    ):
        sft.train(make(trl={"chat_template_path": "elsewhere"}))


def test_7_a_template_of_another_model_is_noticed(tiny_tokenizer_copy):
    """A Llama 3 template on a tokenizer that does not know its marks: the marks are named, and
    answers still end with a real end token.
    """
    tiny_tokenizer_copy.chat_template = LLAMA3
    templater = Templater(tiny_tokenizer_copy)
    row = answer_row(
        Example(row=1, messages=(Message("user", "Well?"), Message("assistant", "Yes."))), templater
    )
    assert any(
        "<|eot_id|>" in note and "are no tokens of this tokenizer" in note
        for note in templater.notes
    )
    assert row.labels[-1] == tiny_tokenizer_copy.eos_token_id
    proper = Templater(family_tokenizer("llama3"))
    answer_row(
        Example(row=1, messages=(Message("user", "Well?"), Message("assistant", "Yes."))), proper
    )
    assert not proper.notes


def test_16_a_file_that_is_not_understood_says_what_it_has_and_what_is_known(make, file):
    """Columns that nobody can tell apart are named, with the flag that maps them."""
    job = make(
        job_data=file(
            [
                {
                    "alpha": f"One text {number} here.",
                    "beta": f"Another text {number} there.",
                    "gamma": f"A third text {number}.",
                }
                for number in range(20)
            ]
        )
    )
    with pytest.raises(InputError, match=r"data\.jsonl") as caught:
        sft.train(job)
    text = caught.value.text()
    assert "alpha" in text
    assert "beta" in text
    assert "--map" in text


def test_16_what_is_guessed_of_columns_is_said(make, file, capsys):
    """Questions and answers under names of another language are taken as such, and the log says so and where
    to say which is which.
    """
    job = make(
        job_data=file(
            [
                {
                    "anfrage": f"Question {number}, is it so?",
                    "antwort": f"Answer {number}, it is so.",
                    "gamma": number * 1.5,
                }
                for number in range(20)
            ]
        ),
        max_steps=2,
        warmup=0.0,
    )
    sft.train(job)
    (note,) = read_json(job.output / "result.json")["data"]["notes"]
    assert "a request in `anfrage` and its answer in `antwort`, guessed from" in note
    assert "`data.mapping`" in note
    assert note in capsys.readouterr().err


def test_16_a_broken_row_is_named_with_its_line(make, file):
    """The line of invalid JSON is named by the trainer as by the check."""
    path = file([chat(f"Question {number}?", "Yes.") for number in range(5)])
    path.write_text(path.read_text() + '{"messages": [\n')
    with pytest.raises(InputError, match=r"data\.jsonl:6:\d+: invalid JSON"):
        sft.train(make(job_data=path))


def test_an_error_is_shown_once_by_the_command(
    make, tmp_path, tiny_model, chats, monkeypatch, capsys
):
    """Called by hand, a trainer prints its error; called by `advise run`, which shows error.json,
    it does not print it as well.
    """
    plan = tmp_path / "plan.json"
    stage = {
        "name": "sft",
        "objective": "sft",
        "update": "lora",
        "learning_rate": 0.01,
        "seq_len": 8,
    }
    plan.write_text(
        json.dumps(
            {
                "version": 1,
                "name": "test",
                "model": str(tiny_model),
                "data": {"path": str(chats)},
                "stages": [stage],
            }
        )
    )
    arguments = [str(plan), "--stage", "sft", "--run", str(tmp_path / "run")]
    assert main(["sft", *arguments]) == 2
    assert capsys.readouterr().err.count("longer than seq_len 8") == 1
    monkeypatch.setenv("ADVISE_TELLS_ERRORS", "1")
    assert main(["sft", *arguments]) == 2
    assert "longer than seq_len 8" not in capsys.readouterr().err
    assert (
        "longer than seq_len 8"
        in read_json(tmp_path / "run" / "stages" / "sft" / "error.json")["what"]
    )


@pytest.fixture
def tiny_tokenizer_copy(tiny_model):
    from transformers import AutoTokenizer

    return deepcopy(AutoTokenizer.from_pretrained(tiny_model))


def _Silent():
    from transformers import TrainerCallback

    callback = TrainerCallback()
    callback.store = None  # no checkpoints
    return callback
