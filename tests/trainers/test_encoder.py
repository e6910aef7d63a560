"""Sorting texts into classes by encoders and small decoders, read by plain transformers."""

import random

import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, pipeline

from advisor.ground.errors import InputError
from tests.trainers import runs
from tests.trainers.runs import write_rows

WORDS = {"spam": ("win", "free", "prize", "now"), "ham": ("meeting", "report", "lunch", "friday")}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A hundred and twenty texts whose words give their class away."""
    draw = random.Random(5)
    rows = [
        {"text": f"{' '.join(draw.choices(WORDS[name], k=5))} {number}", "label": name}
        for number in range(60)
        for name in WORDS
    ]
    return write_rows(tmp_path_factory.mktemp("labelled") / "mail.jsonl", rows)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory, tiny_model):
    """A random two-layer BERT whose tokenizer has a padding token and no end token."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    raw.train_from_iterator(
        [" ".join(word for words in WORDS.values() for word in words), "0 1 2 3 4 5 6 7 8 9"],
        trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(make, labelled):
    """`trained(model, **keys)`: a stage that sorts, and what it says of itself."""
    small = {
        "head": "classes", "holdout": 0.25, "micro_batch_size": 8, "seq_len": 32, "max_steps": 60,
        "learning_rate": 3e-3, "job_data": labelled,
    }  # fmt: skip

    def train(model=None, **keys):
        job = make(**{**small, **({"job_model": model} if model else {}), **keys})
        return job, runs.trained(job)

    return train


@pytest.mark.parametrize(("bert", "update"), [(True, "full"), (True, "lora"), (False, "full")])
def test_texts_are_sorted_by_what_was_learned(trained, tiny_bert, bert, update):
    """Held-out texts are called by their class, and plain loading gives the names of classes."""
    keys = {"learning_rate": 8e-3, "max_steps": 120} if update != "full" else {}
    job, result = trained(tiny_bert if bert else None, update=update, **keys)
    found = result["evaluation"]
    assert found["metrics"]["accuracy"]["after"] > 0.9
    assert result["verdict"]["word"] == "better"
    assert sum(map(sum, found["confusion"]["counts"])) == found["rows"] == 30
    assert found["macro_f1_interval"][0] <= found["metrics"]["macro_f1"]["after"]
    assert all(check["ok"] for check in result["checks"])
    if update == "full":
        classify = pipeline("text-classification", str(job.output))
        assert classify("free prize now win win")[0]["label"] == "spam"
        assert classify("report meeting lunch friday")[0]["label"] == "ham"


def test_packing_and_a_single_class_are_refused(trained, tmp_path):
    """A head cannot go with packed rows; a file in which every row has the same class is no task."""
    with pytest.raises(InputError, match="packing"):
        trained(packing=True)
    rows = [{"text": f"text {number}", "label": "same"} for number in range(40)]
    with pytest.raises(InputError, match=r"every row has the class|one class|few distinct"):
        trained(job_data=write_rows(tmp_path / "one.jsonl", rows))


def test_modules_go_under_a_head_but_a_prefix_not_under_that_of_an_encoder(trained, tiny_bert):
    """An encoder keeps no keys and values that a prefix could be."""
    keys = {"update": "prefix", "prefix_tokens": 4, "max_steps": 20, "learning_rate": 2e-2}
    _, result = trained(**keys)
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert result["evaluation"]["metrics"]["accuracy"]["after"] > 0.6
    why = "does not cache keys and values in every layer, so that a prefix has no place in it"
    with pytest.raises(InputError, match=why):
        trained(tiny_bert, **keys)
    _, result = trained(tiny_bert, update="adapter", bottleneck=8, max_steps=10)
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert result["evaluation"]["rows"] == 30
