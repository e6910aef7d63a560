"""Sequence-to-sequence models: trained whole and with LoRA on inputs and outputs, judged, resumed,
and loaded by plain transformers and PEFT.
"""

import json
import random
from dataclasses import replace

import pytest
from msgspec import structs

from advisor.ground.errors import InputError
from tests.trainers.runs import break_at, losses
from trainers import sft
from trainers.heads import set_languages

WORDS = ("red", "blue", "green", "tea", "cup", "kettle", "shop", "parcel")


@pytest.fixture(scope="module")
def backwards(tmp_path_factory):
    """A hundred rows whose output is the last word of the input, in capital letters."""
    draw = random.Random(3)
    rows = []
    for number in range(100):
        words = draw.choices(WORDS, k=3)
        rows.append({"prompt": f"{' '.join(words)} {number}", "completion": f"{words[-1].upper()}"})
    path = tmp_path_factory.mktemp("backwards") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_tokenizer(folder, post=True):
    """A tokenizer over words and bytes that ends each text with </s>, as T5 and BART do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [" ".join(WORDS), " ".join(WORDS).upper()] * 4,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<pad>", "</s>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", bos_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A random T5 of two layers each, gated as version 1.1."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, dropout_rate=0.0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tiny_bart(tmp_path_factory):
    """A random BART of two layers each."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-bart")
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
            decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
            bos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def stage(make, backwards):
    def build(model, **keys):
        job = make(
            head="seq2seq",
            job_data=keys.pop("data", backwards),
            holdout=0.2,
            seq_len=32,
            **{
                "max_steps": 6,
                "learning_rate": 3e-3,
                "update": "full",
                "micro_batch_size": 8,
                **keys,
            },
        )
        return replace(job, plan=structs.replace(job.plan, model=str(model)))

    return build


def result_of(job):
    sft.train(job)
    return json.loads((job.output / "result.json").read_text())


@pytest.mark.parametrize("architecture", ["tiny_t5", "tiny_bart"])
@pytest.mark.parametrize("update", ["full", "lora"])
def test_outputs_are_learned(stage, architecture, update, request):
    """The held-out loss falls, every check of the saved result holds, and plain loading writes what
    was learned.
    """
    import torch
    from transformers import AutoTokenizer

    model = request.getfixturevalue(architecture)
    rate = {"learning_rate": 1e-2} if update == "full" else {"learning_rate": 2e-2, "rank": 16}
    job = stage(model, update=update, max_steps=250 if update == "full" else 60, **rate)
    result = result_of(job)
    found = result["evaluation"]
    # LoRA leaves embeddings alone, which are random in these models.
    fall = 0.5 if update == "full" else 0.1
    assert found["holdout_loss_after"] < found["holdout_loss_before"] - fall
    assert found["rows"] == 20
    assert result["verdict"]["word"] == "better"
    assert all(check["ok"] for check in result["checks"]), result["checks"]
    assert any("AutoPeft" in check["text"] or "AutoModelForSeq2SeqLM" in check["text"]
               for check in result["checks"])  # fmt: skip
    if update == "full":
        from transformers import AutoModelForSeq2SeqLM as Loader
    else:
        from peft import AutoPeftModelForSeq2SeqLM as Loader
    loaded = Loader.from_pretrained(str(job.output))
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    batch = tokenizer("red tea cup 7", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        written = loaded.generate(**batch, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(written[0], skip_special_tokens=True).strip()
    assert text in {word.upper() for word in WORDS} or update == "lora"


def test_the_loss_is_a_mean_over_the_tokens_of_a_step(stage, tiny_t5, tmp_path):
    """Eight rows at once, or two at a time and four times: the same losses."""
    curves = []
    for micro, accumulation in ((8, 1), (2, 4)):
        job = stage(
            tiny_t5, max_steps=4, micro_batch_size=micro, grad_accum=accumulation,
            group_by_length=False, job_run=tmp_path / f"run-{micro}",
        )  # fmt: skip
        sft.train(job)
        curves.append(losses(job))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_stopped_run_goes_on_to_the_same_losses(stage, tiny_t5, monkeypatch, tmp_path):
    """After a crash it resumes from its last checkpoint, and each loss is that of a run that was
    never stopped.
    """
    whole = stage(tiny_t5, job_run=tmp_path / "whole", save_steps=2)
    sft.train(whole)
    broken = stage(tiny_t5, job_run=tmp_path / "broken", save_steps=2)
    break_at(5, broken, monkeypatch)
    sft.train(broken)
    assert losses(broken) == losses(whole)


def test_only_the_output_counts_and_both_texts_are_closed(tiny_t5, backwards):
    """The labels are the output's tokens and the end; the input has its own end."""
    from transformers import AutoTokenizer

    from advisor.data import read_examples
    from trainers.rows import Templater
    from trainers.rows.heads import REWRITINGS, cut_both
    from trainers.rows.row import LeftOut

    tokenizer, left = AutoTokenizer.from_pretrained(tiny_t5), LeftOut()
    row = next(REWRITINGS.rows(read_examples(backwards), Templater(tokenizer), left))
    assert row.labels[-1] == row.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.labels, skip_special_tokens=True) == row.expected
    assert tokenizer.decode(row.input_ids, skip_special_tokens=True) == row.prompt
    assert not tokenizer.chat_template
    short = cut_both(row, 3)
    assert (short.tokens, short.input_ids[-1]) == (3, tokenizer.eos_token_id)
    assert left.total == 0


def test_tokens_that_are_read_and_written_are_counted(stage, tiny_t5):
    """What a run says of its tokens is what the rows hold."""
    job = stage(tiny_t5, max_steps=None, epochs=1)
    measured = result_of(job)["measured"]
    assert measured["learned_tokens"] < measured["tokens"] <= measured["computed_tokens"]


def test_what_does_not_go_with_an_encoder_and_a_decoder_is_refused(stage, tiny_t5, tiny_model):
    """Packing and prefixes, and a model that is none."""
    with pytest.raises(InputError, match="packing"):
        sft.train(stage(tiny_t5, packing=True))
    with pytest.raises(InputError, match=r"full or lora"):
        sft.train(stage(tiny_t5, update="prefix", prefix_tokens=4))
    with pytest.raises(InputError, match="no encoder beside its decoder"):
        sft.train(stage(tiny_model))
    with pytest.raises(InputError, match="knows no languages"):
        sft.train(stage(tiny_t5, target_language="deu_Latn"))


@pytest.fixture(scope="module")
def tiny_nllb(tmp_path_factory):
    """A random model of NLLB's kind with its own tokenizer, which knows 202 languages and no words."""
    import torch
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    folder = tmp_path_factory.mktemp("tiny-nllb")
    tokenizer = NllbTokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
            decoder_ffn_dim=64, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_model_of_many_languages_is_told_which(stage, tiny_nllb):
    """NLLB's kind wants both languages, a wrong one is refused with the nearest, and the result
    writes the language that it was trained to write.
    """
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_nllb)
    wrong = stage(tiny_nllb, source_language="eng_Latn", target_language="deu_Latin")
    with pytest.raises(InputError, match="did you mean 'deu_Latn'"):
        set_languages(wrong, tokenizer)
    with pytest.raises(InputError, match="source_language is not said"):
        set_languages(stage(tiny_nllb), tokenizer)
    job = stage(tiny_nllb, source_language="eng_Latn", target_language="deu_Latn", max_steps=8)
    assert [check["ok"] for check in result_of(job)["checks"][:2]] == [True, True]
    written = GenerationConfig.from_pretrained(job.output).forced_bos_token_id
    assert tokenizer.convert_ids_to_tokens(written) == "deu_Latn"


def test_labels_begin_with_the_language_that_is_written(stage, tiny_nllb):
    """The input carries the language that is read, the output that which is written."""
    from trainers.heads import Seq2Seq
    from trainers.stage.load import prepare

    job = stage(tiny_nllb, source_language="eng_Latn", target_language="deu_Latn")
    tokenizer, data = prepare(job, Seq2Seq())
    row = data.train[0]
    first = tokenizer.convert_ids_to_tokens([row.input_ids[0], row.labels[0]])
    assert first == ["eng_Latn", "deu_Latn"]
