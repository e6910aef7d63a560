"""Continued pre-training: held-out documents, mixed-in general text, refusal of too little."""

import pytest

from advisor.ground.errors import InputError
from tests.trainers.runs import trained
from trainers import cpt
from trainers.start.loading import load_tokenizer

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
    assert found["verdict"]["word"] == "better"
    assert evaluation["samples"] == []


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
