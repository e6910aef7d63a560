"""Models with heads: outputs of sequence-to-sequence models, and classes by encoders and small decoders."""

import random
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForSeq2SeqLM
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from advisor.data import read_examples
from advisor.ground.errors import InputError
from tests.trainers.families import byte_level
from tests.trainers.runs import losses, result_of, trained, whole_and_broken, write_rows
from trainers import sft
from trainers.heads import Seq2Seq
from trainers.rows import Templater
from trainers.rows.heads import REWRITINGS, cut_both
from trainers.rows.row import LeftOut
from trainers.stage.load import prepare

WORDS = ("red", "blue", "green", "tea", "cup", "kettle", "shop", "parcel")


@pytest.fixture(scope="module")
def backwards(tmp_path_factory):
    """A hundred rows whose output is the last word of the input, in capital letters."""
    draw = random.Random(3)
    rows = (
        {"prompt": f"{' '.join(words)} {number}", "completion": words[-1].upper()}
        for number, words in enumerate(draw.choices(WORDS, k=3) for _ in range(100))
    )
    return write_rows(tmp_path_factory.mktemp("backwards") / "rows.jsonl", rows)


def words_tokenizer():
    """A tokenizer over words and bytes that ends each text with </s>, as T5 and BART do."""
    words = [" ".join(WORDS), " ".join(WORDS).upper()] * 4
    tokenizer = byte_level(("<pad>", "</s>", "<s>"), eos="</s>", bos="<s>", words=words)
    tokenizer.pad_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip
NLLB = {
    "model_type": "m2m_100", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip


SHAPES = {
    "t5": (T5, words_tokenizer),  # of two layers each, gated as version 1.1
    "bart": (BART, words_tokenizer),
    # Of NLLB's kind with its own tokenizer, which knows 202 languages and no words.
    "nllb": (NLLB, NllbTokenizer),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a random model of each shape, with its tokenizer."""
    found = {}
    for name, (shape, build) in SHAPES.items():
        found[name], tokenizer = tmp_path_factory.mktemp(f"tiny-{name}"), build()
        tokenizer.save_pretrained(found[name])
        torch.manual_seed(0)
        config = AutoConfig.for_model(**shape, vocab_size=len(tokenizer))
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(found[name])
    return found


@pytest.fixture
def stage(make, backwards, saved, tiny_model):
    """`stage(name, **keys)`: a job on the model of this name; None: on one that has no encoder."""
    small = {"max_steps": 6, "learning_rate": 3e-3, "update": "full", "micro_batch_size": 8}
    small |= {"head": "seq2seq", "holdout": 0.2, "seq_len": 32, "job_data": backwards}
    return lambda name, **keys: make(**small | keys, job_model=saved.get(name, tiny_model))


@pytest.mark.parametrize(
    ("name", "loader", "keys", "fall"),
    [
        ("t5", AutoModelForSeq2SeqLM, {"learning_rate": 1e-2, "max_steps": 150}, 0.5),
        # LoRA leaves embeddings alone, which are random in these models.
        ("bart", AutoPeftModelForSeq2SeqLM,
         {"update": "lora", "learning_rate": 2e-2, "max_steps": 60, "rank": 16}, 0.1),
    ],
    ids=["t5", "bart"],
)  # fmt: skip
def test_outputs_are_learned(stage, name, loader, keys, fall):
    """The held-out loss falls, every check holds, and plain loading writes what was learned."""
    job = stage(name, **keys)
    result = trained(job)
    found = result["evaluation"]
    assert found["holdout_loss_after"] < found["holdout_loss_before"] - fall
    assert (found["rows"], result["verdict"]["word"]) == (20, "better")
    assert all(check["ok"] for check in result["checks"]), result["checks"]
    measured = result["measured"]
    assert measured["learned_tokens"] < measured["tokens"] <= measured["computed_tokens"]
    assert any("AutoModelForSeq2SeqLM" in check["text"] for check in result["checks"])
    loaded = loader.from_pretrained(str(job.output))
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    batch = tokenizer("red tea cup 7", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        written = loaded.generate(**batch, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(written[0], skip_special_tokens=True).strip()
    assert text in {word.upper() for word in WORDS} or name == "bart"


def test_the_loss_is_a_mean_over_the_tokens_of_a_step(stage, tmp_path):
    """Eight rows at once, or two at a time and four times: the same losses."""
    keys = {"max_steps": 4, "group_by_length": False}
    jobs = [
        stage(
            "t5", **keys, micro_batch_size=size, grad_accum=8 // size, job_run=tmp_path / str(size)
        )
        for size in (8, 2)
    ]
    for job in jobs:
        sft.train(job)
    assert losses(jobs[0]) == pytest.approx(losses(jobs[1]), rel=1e-4)


def test_a_stopped_run_goes_on_to_the_same_losses(stage, monkeypatch):
    """After a crash each loss is that of an unbroken run, and plain loading reads the result."""
    make = partial(stage, "bart", save_steps=2, max_steps=6)
    whole, broken = whole_and_broken(make, 5, monkeypatch)
    assert losses(broken) == losses(whole)
    assert all(check["ok"] for check in result_of(whole)["checks"][:2])


def test_only_the_output_counts_and_both_texts_are_closed(saved, backwards):
    """The labels are the output's tokens and the end; the input has its own end."""
    tokenizer, left = AutoTokenizer.from_pretrained(saved["t5"]), LeftOut()
    row = next(REWRITINGS.rows(read_examples(backwards), Templater(tokenizer), left))
    assert row.labels[-1] == row.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.labels, skip_special_tokens=True) == row.expected
    assert tokenizer.decode(row.input_ids, skip_special_tokens=True) == row.prompt
    assert not tokenizer.chat_template
    short = cut_both(row, 3)
    assert ((short.tokens, short.input_ids[-1]), left.total) == ((3, tokenizer.eos_token_id), 0)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("t5", {"packing": True}, "packing"),
        ("t5", {"update": "prefix", "prefix_tokens": 4}, "full or lora"),
        (None, {}, "no encoder beside its decoder"),
        ("t5", {"target_language": "deu_Latn"}, "knows no languages"),
        ("nllb", {"source_language": "eng_Latn", "target_language": "deu_Latin"},
         "did you mean 'deu_Latn'"),
        ("nllb", {}, "source_language is not said"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_an_encoder_and_a_decoder_is_refused(name, keys, said, stage):
    """NLLB's kind wants both languages, and a wrong one is refused with the nearest."""
    with pytest.raises(InputError, match=said):
        sft.train(stage(name, **keys))


def test_a_model_of_many_languages_is_told_which(stage):
    """The input carries the language that is read, the output and the result that written."""
    spoken = {"source_language": "eng_Latn", "target_language": "deu_Latn"}
    job = stage("nllb", **spoken, max_steps=8, job_judge=False)
    tokenizer, data = prepare(job, Seq2Seq())
    row = data.train[0]
    first = tokenizer.convert_ids_to_tokens([row.input_ids[0], row.labels[0]])
    assert first == ["eng_Latn", "deu_Latn"]
    assert [check["ok"] for check in trained(job)["checks"][:2]] == [True, True]
    written = GenerationConfig.from_pretrained(job.output).forced_bos_token_id
    assert tokenizer.convert_ids_to_tokens(written) == "deu_Latn"


GIVEN_AWAY = {
    "spam": ("win", "free", "prize", "now"),
    "ham": ("meeting", "report", "lunch", "friday"),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A hundred and twenty texts whose words give their class away."""
    draw = random.Random(5)
    rows = [
        {"text": f"{' '.join(draw.choices(GIVEN_AWAY[name], k=5))} {number}", "label": name}
        for number in range(60)
        for name in GIVEN_AWAY
    ]
    return write_rows(tmp_path_factory.mktemp("labelled") / "mail.jsonl", rows)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory, tiny_model):
    """A random two-layer BERT whose tokenizer has a padding token and no end token."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    raw.train_from_iterator(
        [" ".join(word for words in GIVEN_AWAY.values() for word in words), "0 1 2 3 4 5 6 7 8 9"],
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
def sorting(make, labelled):
    """`sorting(model, **keys)`: a stage that sorts, and what it says of itself."""
    small = {
        "head": "classes", "holdout": 0.25, "micro_batch_size": 8, "seq_len": 32, "max_steps": 60,
        "learning_rate": 3e-3, "job_data": labelled,
    }  # fmt: skip

    def train(model=None, **keys):
        job = make(**{**small, **({"job_model": model} if model else {}), **keys})
        return job, trained(job)

    return train


@pytest.mark.parametrize(("bert", "update"), [(True, "full"), (True, "lora"), (False, "full")])
def test_texts_are_sorted_by_what_was_learned(sorting, tiny_bert, bert, update):
    """Held-out texts are called by their class, and plain loading gives the names of classes."""
    keys = {"learning_rate": 8e-3, "max_steps": 120} if update != "full" else {}
    job, result = sorting(tiny_bert if bert else None, update=update, **keys)
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


def test_packing_and_a_single_class_are_refused(sorting, tmp_path):
    """A head cannot go with packed rows; a file in which every row has the same class is no task."""
    with pytest.raises(InputError, match="packing"):
        sorting(packing=True)
    rows = [{"text": f"text {number}", "label": "same"} for number in range(40)]
    with pytest.raises(InputError, match=r"every row has the class|one class|few distinct"):
        sorting(job_data=write_rows(tmp_path / "one.jsonl", rows))


def test_modules_go_under_a_head_but_a_prefix_not_under_that_of_an_encoder(sorting, tiny_bert):
    """An encoder keeps no keys and values that a prefix could be."""
    keys = {"update": "prefix", "prefix_tokens": 4, "max_steps": 20, "learning_rate": 2e-2}
    _, result = sorting(**keys)
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert result["evaluation"]["metrics"]["accuracy"]["after"] > 0.6
    why = "does not cache keys and values in every layer, so that a prefix has no place in it"
    with pytest.raises(InputError, match=why):
        sorting(tiny_bert, **keys)
    _, result = sorting(tiny_bert, update="adapter", bottleneck=8, max_steps=10)
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert result["evaluation"]["rows"] == 30
