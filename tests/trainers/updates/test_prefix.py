"""Prefix tuning through the trainer: started from real activations, refused where it cannot
work.
"""

import pytest

pytest.importorskip("torch")

from advisor.ground.errors import InputError
from tests.trainers.runs import trained
from trainers import sft
from trainers.updates import load_update, prefix


def test_it_learns_and_loads_in_plain_peft(make):
    """A prefix lowers the loss, passes its checks, and AutoPeftModelForCausalLM loads it."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = make(update="prefix", prefix_tokens=10, learning_rate=5e-2, max_steps=15)
    result = trained(job)
    assert result["loss_last"] < result["loss_first"]
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert (
        result["resolved"]["trainable_parameters"] == 10 * 2 * 2 * 32
    )  # tokens, keys and values, layers, two heads of 16
    ids = AutoTokenizer.from_pretrained(job.output)("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_it_starts_at_the_loss_of_the_prompted_model(make, tiny_model):
    """The first loss is that of the plain model with the answers of the first training rows in
    front of each row.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainers.rows.stage_rows import prepare_rows

    job = make(
        update="prefix",
        prefix_tokens=17,
        micro_batch_size=30,
        holdout=0.0,
        max_steps=1,
        warmup=0.0,
        job_judge=False,
        job_max_steps=1,
    )
    result = trained(job)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = prepare_rows(job, tokenizer).train
    prompt = [
        token
        for row in rows
        for token, label in zip(row.input_ids, row.labels, strict=True)
        if label != -100
    ][:17]

    def loss(front):
        total, count = 0.0, 0
        for row in rows:
            labels = [-100] * len(front) + list(row.labels)
            learned = sum(label != -100 for label in labels[1:])
            ids = torch.tensor([[*front, *row.input_ids]])
            total += (
                float(base(input_ids=ids, labels=torch.tensor([labels])).loss.detach()) * learned
            )
            count += learned
        return total / count

    assert result["loss_first"] == pytest.approx(
        loss(prompt), abs=1e-4
    )  # one batch of all the rows
    assert abs(result["loss_first"] - loss([])) > 1e-3


def test_a_prompt_of_ones_own_can_be_the_start(make):
    """prefix_text is taken in full, rows fill what is left, and a text that is too long is refused
    with the length it needs.
    """
    import torch
    from peft import get_peft_model

    from trainers.rows.stage_rows import prepare_rows
    from trainers.start import loading

    text = "Answer shortly."
    job = make(update="prefix", prefix_tokens=40, prefix_text=text)
    tokenizer = loading.load_tokenizer(job)
    rows = prepare_rows(job, tokenizer).train
    base = loading.load_base(job, torch.device("cpu"))
    model = get_peft_model(
        base, load_update("prefix").peft_config(job.stage, job.options, base)
    ).eval()
    said = prefix.start(job.stage, job.options, model, tokenizer, rows)
    given = prefix.text_ids(tokenizer, text)
    assert said.startswith(
        f"the prefix starts from the keys and values of prefix_text ({len(given)} tokens) and"
        " the answers of the first "
    )
    assert tokenizer.decode(given) == f"<|im_start|>system\n{text}<|im_end|>\n"
    front = [*given, *(token for row in rows for token in prefix.learned_ids(row))][:40]
    ids = torch.tensor([list(rows[-1].input_ids)])
    with torch.no_grad():
        mine = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        expected = base(input_ids=torch.cat([torch.tensor([front]), ids], dim=1)).logits[:, 40:]
    assert torch.allclose(mine, expected, atol=1e-5)
    with pytest.raises(
        InputError, match=f"prefix_text has {len(given)} tokens, prefix_tokens is 5"
    ):
        sft.train(make(update="prefix", prefix_tokens=5, prefix_text=text))


def test_what_a_prefix_cannot_go_with_is_refused_before_the_model_loads(make, monkeypatch):
    """Other starts than real activations: all faults at once, each with the way out (what else a
    prefix refuses: tests/plan/test_read.py).
    """
    import trainers.start.loading as loading

    monkeypatch.setattr(
        loading, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    with pytest.raises(InputError) as caught:
        sft.train(make(update="prefix", peft={"prefix_projection": True, "num_virtual_tokens": 3}))
    text = str(caught.value)
    assert "'prefix_projection' is set by the plan's own key prefix_text" in text
    assert "'num_virtual_tokens' is set by the plan's own key prefix_tokens" in text


def test_too_few_tokens_or_positions_are_refused(make, tmp_path, chats):
    """A prefix longer than all rows together, or than the model has positions for, is bad input
    with the numbers.
    """
    few = tmp_path / "few.jsonl"
    few.write_text("".join(chats.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(
        InputError, match=r"answers of all rows have \d+ tokens, prefix_tokens is 200"
    ):
        sft.train(make(update="prefix", prefix_tokens=200, seq_len=100, job_data=few))
    with pytest.raises(
        InputError, match="prefix_tokens 500 and seq_len 128 make 628 positions, the model has 512"
    ):
        sft.train(make(update="prefix", prefix_tokens=500))


def test_a_model_without_a_cache_of_keys_has_no_place_for_a_prefix(make):
    """A Mamba keeps states, not keys: refused by name."""
    from transformers import AutoModelForCausalLM, MambaConfig

    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    job = make(update="prefix")
    with pytest.raises(InputError, match="MambaForCausalLM does not cache keys and values"):
        load_update("prefix").peft_config(job.stage, job.options, mamba)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_bases_and_attention_it_was_tested_with(attention, quantization, make):
    """16-bit and 4-bit bases, either attention: it learns, and what was saved is what was
    trained.
    """
    keys = {"weights_dtype": "bfloat16"} if quantization is None else {"quantization": quantization}
    result = trained(
        make(update="prefix", attention=attention, learning_rate=5e-2, max_steps=12, **keys)
    )
    assert result["loss_last"] < result["loss_first"]
    assert result["checks"][0]["ok"]
    assert result["resolved"]["trainable_dtype"] == "float32"


def test_a_prefix_that_was_not_trained_fails(make):
    """Differing from the base is not enough, since the start does that: training itself must have
    changed something.
    """
    from advisor.ground.errors import TrainingFailed

    with pytest.raises(TrainingFailed, match="has no effect"):
        sft.train(
            make(update="prefix", max_steps=1, warmup=0.5, scheduler="linear", job_judge=False)
        )
