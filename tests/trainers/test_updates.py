"""LoRA, bottleneck adapters and prefixes through the trainer: settings, variants, refusals."""

import dataclasses

import pytest
from msgspec import structs

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MambaConfig

from advisor.ground.errors import InputError
from tests.trainers.fitting import sequence
from tests.trainers.rollouts.vllm_stand_in import scored
from tests.trainers.runs import losses, trained, weights, whole_and_broken
from trainers.evaluation.loss import log_prob_sums
from trainers.evaluation.saved_result import plain_lora
from trainers.job.files import read_json
from trainers.job.job import make_job
from trainers.rollouts import Answers
from trainers.rows.stage_rows import prepare_rows
from trainers.start import loading
from trainers.updates import load_update, prefix


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank(make):
    """alpha / rank by default, alpha / sqrt(rank) with rslora (Kalajdzievski 2023)."""
    for rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        job = make(rank=16, alpha=8.0, rslora=rslora)
        model = loading.load_base(job, torch.device("cpu"))
        config = load_update("lora").peft_config(job.stage, job.options, model)
        modules = get_peft_model(model, config).modules()
        layers = [module for module in modules if isinstance(module, LoraLayer)]
        assert {layer.scaling["default"] for layer in layers} == {scale}


def test_a_module_scheme_without_its_config_is_refused(monkeypatch):
    """Else every weight of the model would be trained, without a word."""
    monkeypatch.setattr("trainers.updates.lora.CONFIG", "")
    with pytest.raises(InputError, match=r"'lora' trains a module, and .* has no CONFIG"):
        load_update("lora")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rank": 65},
         r"rank 65 is larger than every layer it would correct: the widest is 64 \(\w+"),
        (
            {"rank": 33, "target_modules": ["v_proj"]},  # named targets count alone
            r"rank 33 is larger than .*: the widest is 32 \(v_proj\)",
        ),
        ({"update": "adapter", "peft": {"layers": [7]}},
         "layers names 7, but LlamaForCausalLM has layers 0 to 1"),
        ({"update": "prefix", "prefix_tokens": 200, "seq_len": 100, "holdout": 0.8},
         r"answers of all rows have \d+ tokens, prefix_tokens is 200"),
        ({"update": "prefix", "prefix_tokens": 500},
         "prefix_tokens 500 and seq_len 128 make 628 positions, the model has 512"),
        ({"update": "prefix", "prefix_tokens": 5, "prefix_text": "Answer shortly."},
         r"prefix_text has \d\d tokens, prefix_tokens is 5"),
    ],
    ids=["rank", "rank of targets", "layer", "rows for a prefix", "positions", "prefix_text"],
)  # fmt: skip
def test_sizes_that_the_model_or_the_rows_lack_are_bad_input(keys, said, make):
    """Ranks, layers and prefixes that do not fit are told with the numbers."""
    with pytest.raises(InputError, match=said):
        trained(make(**keys))


def plain_or_untied(folder, *, tied):
    """The tiny model, whose output layer may be no longer its embeddings."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_be_trained_too(tied, make, tiny_model, tmp_path):
    """train_embeddings trains them and the output layer whole, inside the adapter."""
    base = plain_or_untied(tiny_model, tied=tied)
    folder = tmp_path / "base"
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    job = make(rank=4, train_embeddings=True, job_judge=False)
    job = dataclasses.replace(job, plan=structs.replace(job.plan, model=str(folder)))
    result = trained(job)
    assert all(check["ok"] for check in result["checks"][:2])
    low = sum(tensor.numel() for name, tensor in weights(job).items() if "lora_" in name)
    whole = base.get_input_embeddings().weight.numel() * (1 if tied else 2)
    assert result["resolved"]["trainable_parameters"] == low + whole
    again = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    found = again.get_input_embeddings().weight
    assert not torch.equal(found, base.get_input_embeddings().weight)
    assert not tied or torch.equal(found, again.get_output_embeddings().weight)


DORA = {"use_dora": True, "rank_pattern": {"q_proj": 2}}
PREFIX = {"update": "prefix", "rank": None, "learning_rate": 5e-2, "max_steps": 12}


@pytest.mark.parametrize(
    "keys",
    [
        {"peft": DORA},
        {"peft": DORA, "quantization": "nf4"},
        {"peft": {"init_lora_weights": "orthogonal", "trainable_token_indices": [1, 2]}},
        {**PREFIX, "attention": "eager", "weights_dtype": "bfloat16"},
        {**PREFIX, "attention": "sdpa", "quantization": "nf4"},
    ],
)
def test_variants_of_peft_bases_and_attention_go_through(keys, make):
    """Variants arrive verbatim; a prefix learns on 16-bit and 4-bit bases in either attention."""
    job = make(**{"rank": 4, "max_steps": 8, **keys})
    result, passed = trained(job), keys.get("peft", {})
    assert passed.items() <= result["resolved"]["peft"].items()
    assert passed.items() <= read_json(job.output / "adapter_config.json").items()
    assert result["loss_last"] < result["loss_first"]
    assert all(check["ok"] for check in result["checks"][:2])
    assert result["resolved"]["trainable_dtype"] == "float32"


@pytest.mark.parametrize(
    ("start", "rank", "quantization", "match"),
    [
        ("pissa", 8, None, "no start that these trainers make"),
        ("pissa", 8, "nf4", "it changes the base"),
        ("olora", 8, None, "no start that these trainers make"),
        ("eva", 8, None, "a pass over the data"),
        ("orthogonal", 8, "nf4", "dtype of the base"),
        ("orthogonal", 5, None, "even rank"),  # PEFT halves it
    ],
)
def test_starts_that_cannot_be_had_are_bad_input(start, rank, quantization, match, make, unloaded):
    """A start that changes the base or needs more is refused before a model is loaded."""
    with pytest.raises(InputError, match=match) as caught:
        trained(make(rank=rank, peft={"init_lora_weights": start}, quantization=quantization))
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("options", "is_ok", "said"),
    [
        ({}, True, "can be applied as W + BA"),
        ({"init_lora_weights": "olora"}, False, "changes the base by its start, olora"),
        ({"use_dora": True, "bias": "all"}, True, "DoRA and biases cannot be applied"),
        ({"use_rslora": True, "modules_to_save": ["lm_head"]}, True, "lm_head saved whole"),
    ],
)
def test_what_other_engines_cannot_apply_is_noticed(options, is_ok, said, tmp_path):
    """An OLoRA as PEFT saves it is right in PEFT and another model in vLLM and llama.cpp."""
    LoraConfig(r=4, target_modules="all-linear", **options).save_pretrained(tmp_path)
    (found,) = plain_lora(tmp_path)
    assert found.ok is is_ok
    assert said in found.text


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [4, 5]},
    ],
    ids=["corrected", "whole", "tokens"],
)
def test_what_is_trained_of_the_output_layer_is_evaluated(keys, tiny_model):
    """Log-probabilities are those of the model's own logits, whatever is put on its head."""
    model = plain_or_untied(tiny_model, tied="lm_head" not in str(keys))
    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **keys)
    model = get_peft_model(model, config).eval()
    for one in model.parameters():
        if one.requires_grad:
            torch.nn.init.normal_(one)
    # (what is read, what is learned behind it)
    texts = Answers([[3, 4], [9]], [[5, 6, 7], [10, 11]], [True, True])
    wanted = [sum(one) for one in scored(model, texts, 1.0)]
    rows = [sequence(1, [3, 4, 5, 6, 7], [-100, -100, 5, 6, 7]), sequence(2, [9, 10, 11])]
    assert log_prob_sums(model, rows, 0, at_once=2) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("update", "keys", "said"),
    [
        ("lora", {"rank": 64}, "64 is larger than the width of some layers (k_proj 32, v_proj 32)"),
        ("prefix", {"prefix_tokens": 4}, "the prefix starts from the keys and values"),
        ("full", {}, "rows to train on"),
    ],
)
def test_without_room_for_a_second_model_saved_tensors_are_compared(
    update, keys, said, make, monkeypatch, capsys
):
    """With those in memory; an adapter is not loaded beside itself. Each says how it starts."""
    monkeypatch.setattr("trainers.evaluation.saved_result._room_for_second", lambda *_: False)
    (check, *_) = trained(make(update=update, max_steps=2, job_judge=False, **keys))["checks"]
    assert check["ok"]
    assert "the saved tensors are those in memory" in check["text"]
    assert said in capsys.readouterr().err


OF_A_PLACE = 2 * 64 * 16 + 16 + 64  # parameters of a bottleneck of 16 beside a layer 64 wide


@pytest.mark.parametrize(
    ("keys", "parameters", "falls_by"),
    [
        ({"placement": "houlsby"}, 4 * OF_A_PLACE, 0.2),
        ({"placement": "pfeiffer"}, 2 * OF_A_PLACE, 0.2),
        # Of one layer, on a 4-bit base, with keys of the config itself.
        (
            {
                "placement": "parallel", "quantization": "nf4",
                "peft": {"activation": "gelu", "layers": [1], "scale": 2.0},
            },
            OF_A_PLACE,
            0.1,
        ),
        # Tokens, keys and values, layers, two heads of 16.
        (
            {"update": "prefix", "prefix_tokens": 10, "learning_rate": 5e-2, "bottleneck": None},
            10 * 2 * 2 * 32,
            0.0,
        ),
    ],
    ids=["houlsby", "pfeiffer", "parallel", "prefix"],
)  # fmt: skip
def test_it_learns_and_loads_in_plain_peft(keys, parameters, falls_by, make):
    """Each placement and a prefix load after `import advisor.peft_adapter`."""
    job = make(**{"update": "adapter", "bottleneck": 16, "max_steps": 15, **keys})
    result = trained(job)
    assert result["loss_last"] < result["loss_first"] - falls_by
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    found = result["resolved"]
    kind = "PREFIX_TUNING" if job.stage.update == "prefix" else "BOTTLENECK"
    assert {"peft_type": kind, **keys.get("peft", {})}.items() <= found["peft"].items()
    assert found["trainable_dtype"] == "float32"
    assert found["trainable_parameters"] == parameters
    names = {path.name for path in job.output.glob("adapter*")}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    ids = AutoTokenizer.from_pretrained(job.output)("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("own", [{"update": "adapter", "dropout": 0.1}, {"update": "prefix"}])
def test_a_broken_run_resumes_with_the_same_losses(own, make, monkeypatch):
    """Checkpoints of a module hold all that is needed to go on."""
    whole, broken = whole_and_broken(make, 3, monkeypatch, **own, max_steps=5, save_steps=2)
    assert losses(broken) == losses(whole)


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        (
            {"update": "adapter", "bottleneck": 8, "max_steps": 6},
            {
                ("adapter", "bottleneck"): "bottleneck is 9, the adapter it continues from has 8",
                ("lora", None): "continues from a BOTTLENECK adapter",
                ("full", None): "continues from a bottleneck adapter, which cannot be merged",
            },
        ),
        (
            {"update": "lora", "rank": 16},
            {("lora", "rank"): "rank is 9, the adapter it continues from has 16"},
        ),
        (
            {
                "update": "prefix", "prefix_tokens": 20, "prefix_text": "Answer shortly.",
                "learning_rate": 5e-2,
            },
            {},
        ),
    ],
    ids=["adapter", "lora", "prefix"],
)  # fmt: skip
def test_a_stage_goes_on_from_the_module_before_and_full_cannot(keys, refused, make, tmp_path):
    """Another bottleneck or rank is refused, and `full` too, since nothing can be merged."""
    first = make(**keys, job_judge=False)
    trained(first)

    def train_more(**changes):
        more = structs.replace(first.stage, name="more", start_from="sft", **changes)
        plan = structs.replace(first.plan, stages=(first.stage, more))
        return trained(make_job(plan, stage="more", run=first.run, folder=tmp_path, judge=False))

    result = train_more()
    assert result["resolved"]["start_from"] == str(first.output)
    assert result["loss_first"] < losses(first)[0]
    for (update, size), said in refused.items():
        with pytest.raises(InputError, match=said):
            train_more(update=update, options={size: 9} if size else {})


@pytest.mark.parametrize("update", ["adapter", "lora", "prefix"])
def test_the_module_of_another_base_is_bad_input(update, make, tmp_path):
    """Going on from a module of a base with other sizes is exit 2 with what does not fit."""
    elsewhere = tmp_path / "elsewhere"
    job = make(update=update, start_from=str(elsewhere))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    other = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=300, num_attention_heads=4, max_position_embeddings=512, **sizes)
    )
    module = load_update(update).peft_config(job.stage, job.options, other)
    get_peft_model(other, module).save_pretrained(elsewhere)
    with pytest.raises(InputError, match=r"elsewhere,? .*does not fit .*tiny-model"):
        trained(job)


def test_it_starts_at_the_loss_of_the_prompted_model(make, tiny_model):
    """The first loss is that of the plain model with the first answers in front of each row."""
    job = make(
        update="prefix", prefix_tokens=17, micro_batch_size=30, holdout=0.0, max_steps=1, warmup=0.0,
        job_judge=False, job_max_steps=1,
    )  # fmt: skip
    first = trained(job)["loss_first"]  # of one batch of all the rows
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = prepare_rows(job, AutoTokenizer.from_pretrained(tiny_model)).train

    answers = [[label for label in row.labels if label != -100] for row in rows]
    starts = [next(place for place, one in enumerate(row.labels) if one != -100) for row in rows]
    asked = [list(row.input_ids[:start]) for row, start in zip(rows, starts, strict=True)]

    def loss(front):
        texts = Answers([[*front, *ids] for ids in asked], answers, [True] * len(rows))
        return -sum(map(sum, scored(base, texts, 1.0))) / sum(map(len, answers))

    prompt = [token for ids in answers for token in ids][:17]
    assert first == pytest.approx(loss(prompt), abs=1e-4)
    assert abs(first - loss([])) > 1e-3


def test_a_prompt_of_ones_own_can_be_the_start(make):
    """prefix_text is taken in full, and rows fill what is left."""
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


def test_a_model_without_a_cache_of_keys_has_no_place_for_a_prefix(make):
    """A Mamba keeps states, not keys: refused by name."""
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    job = make(update="prefix")
    with pytest.raises(InputError, match="MambaForCausalLM does not cache keys and values"):
        load_update("prefix").peft_config(job.stage, job.options, mamba)
