"""Prefix tuning through the trainer: started from real activations, refused where it cannot
work.
"""

import pytest

torch = pytest.importorskip("torch")

from msgspec import structs
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from advisor.ground.errors import InputError, TrainingFailed
from tests.trainers.runs import losses, trained
from trainers.job.job import make_job
from trainers.rows.stage_rows import prepare_rows
from trainers.start import loading
from trainers.updates import load_update, prefix


def test_it_starts_at_the_loss_of_the_prompted_model(make, tiny_model):
    """The first loss is that of the plain model with the answers of the first training rows in
    front of each row.
    """
    job = make(
        update="prefix", prefix_tokens=17, micro_batch_size=30, holdout=0.0, max_steps=1, warmup=0.0,
        job_judge=False, job_max_steps=1,
    )  # fmt: skip
    first = trained(job)["loss_first"]  # of one batch of all the rows
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = prepare_rows(job, AutoTokenizer.from_pretrained(tiny_model)).train

    def loss(front):
        total, count = 0.0, 0
        for row in rows:
            labels = [-100] * len(front) + list(row.labels)
            learned = sum(label != -100 for label in labels[1:])
            ids = torch.tensor([[*front, *row.input_ids]])
            with torch.no_grad():
                total += float(base(input_ids=ids, labels=torch.tensor([labels])).loss) * learned
            count += learned
        return total / count

    prompt = [label for row in rows for label in row.labels if label != -100][:17]
    assert first == pytest.approx(loss(prompt), abs=1e-4)
    assert abs(first - loss([])) > 1e-3


def test_a_prompt_of_ones_own_can_be_the_start(make):
    """prefix_text is taken in full, rows fill what is left, and a text that is too long is refused
    with the length it needs.
    """
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
    begins = f"the prefix starts from the keys and values of prefix_text ({len(given)} tokens)"
    assert said.startswith(begins + " and the answers of the first ")
    assert tokenizer.decode(given) == f"<|im_start|>system\n{text}<|im_end|>\n"
    front = [*given, *(token for row in rows for token in prefix.learned_ids(row))][:40]
    ids = torch.tensor([list(rows[-1].input_ids)])
    with torch.no_grad():
        mine = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        expected = base(input_ids=torch.cat([torch.tensor([front]), ids], dim=1)).logits[:, 40:]
    assert torch.allclose(mine, expected, atol=1e-5)
    long = f"prefix_text has {len(given)} tokens, prefix_tokens is 5"
    with pytest.raises(InputError, match=long):
        trained(make(update="prefix", prefix_tokens=5, prefix_text=text))


def test_a_stage_goes_on_from_a_prefix_whatever_that_started_from(make, tmp_path):
    """The second of two stages with the same prefix_text trains the prefix of the first."""
    keys = {"prefix_tokens": 20, "prefix_text": "Answer shortly.", "learning_rate": 5e-2}
    first = make(update="prefix", max_steps=3, job_judge=False, **keys)
    trained(first)
    more = structs.replace(first.stage, name="more", start_from="sft")
    plan = structs.replace(first.plan, stages=(first.stage, more))
    job = make_job(plan, stage="more", run=first.run, folder=tmp_path, judge=False)
    assert trained(job)["loss_first"] < losses(first)[0]


def test_too_few_tokens_or_positions_are_refused(make, tmp_path, chats):
    """A prefix longer than all rows together, or than the model has positions for, is bad input
    with the numbers.
    """
    few = tmp_path / "few.jsonl"
    few.write_text("".join(chats.read_text().splitlines(keepends=True)[:5]))
    short = r"answers of all rows have \d+ tokens, prefix_tokens is 200"
    with pytest.raises(InputError, match=short):
        trained(make(update="prefix", prefix_tokens=200, seq_len=100, job_data=few))
    far = "prefix_tokens 500 and seq_len 128 make 628 positions, the model has 512"
    with pytest.raises(InputError, match=far):
        trained(make(update="prefix", prefix_tokens=500))


def test_a_model_without_a_cache_of_keys_has_no_place_for_a_prefix(make):
    """A Mamba keeps states, not keys: refused by name."""
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    job = make(update="prefix")
    with pytest.raises(InputError, match="MambaForCausalLM does not cache keys and values"):
        load_update("prefix").peft_config(job.stage, job.options, mamba)


@pytest.mark.parametrize(
    ("attention", "base"),
    [("eager", {"weights_dtype": "bfloat16"}), ("sdpa", {"quantization": "nf4"})],
)
def test_bases_and_attention_it_was_tested_with(attention, base, make):
    """16-bit and 4-bit bases, either attention: it learns, and what was saved is what was
    trained.
    """
    keys = {"attention": attention, "learning_rate": 5e-2, "max_steps": 12, **base}
    result = trained(make(update="prefix", **keys))
    assert result["loss_last"] < result["loss_first"]
    assert result["checks"][0]["ok"]
    assert result["resolved"]["trainable_dtype"] == "float32"


def test_a_prefix_that_was_not_trained_fails(make):
    """Differing from the base is not enough, since the start does that: training itself must have
    changed something.
    """
    keys = {"max_steps": 1, "warmup": 0.5, "scheduler": "linear", "job_judge": False}
    with pytest.raises(TrainingFailed, match="has no effect"):
        trained(make(update="prefix", **keys))
