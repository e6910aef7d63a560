"""LoRA, bottleneck adapters, prefixes and mixtures of experts through the trainer: settings, refusals."""

import dataclasses

import pytest
from msgspec import structs

torch = pytest.importorskip("torch")

import json
from dataclasses import replace
from types import SimpleNamespace

from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MambaConfig
from trl import SFTConfig

from advisor.ground.errors import InputError
from advisor.plan.model import Launch
from advisor.plan.write import plan_text
from tests.trainers.alignment import FULL, REWARD, keys_of, stage_of
from tests.trainers.conftest import job_in
from tests.trainers.families import byte_level
from tests.trainers.fitting import sequence
from tests.trainers.moe import FAMILIES, tiny_mixture, train_all
from tests.trainers.rollouts.vllm_stand_in import scored
from tests.trainers.runs import (
    break_at,
    losses,
    result_of,
    same,
    torchrun,
    trained,
    weights,
    whole_and_broken,
)
from trainers import sft
from trainers.evaluation.loss import log_prob_sums
from trainers.evaluation.saved_result import _same_tensors, plain_lora
from trainers.job.files import read_json
from trainers.job.job import JUDGE, TRAIN, make_job
from trainers.keep.results import save_weights
from trainers.rollouts import Answers
from trainers.rows.stage_rows import prepare_rows
from trainers.stage.trl_trainer import SFT
from trainers.start import loading
from trainers.updates import load_update, prefix
from trainers.updates.experts import find_experts, silence_routers
from trainers.updates.lora import is_refused


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
    job = make(**{"rank": 4, "max_steps": 8, **keys}, job_judge=False)
    result, passed = trained(job), keys.get("peft", {})
    assert passed.items() <= result["resolved"]["peft"].items()
    assert passed.items() <= read_json(job.output / "adapter_config.json").items()
    assert result["loss_last"] < result["loss_first"]
    assert all(check["ok"] for check in result["checks"][:2])
    found, is_nf4 = result["resolved"], True if "quantization" in keys else None
    assert (found["trainable_dtype"], found["double_quantization"]) == ("float32", is_nf4)


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
    own = {"update": "adapter", "bottleneck": 16, "max_steps": 15, **keys}
    job = make(**own, job_judge=False)
    result = trained(job)
    assert result["loss_last"] < result["loss_first"] - falls_by
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    found = result["resolved"]
    kind = "PREFIX_TUNING" if job.stage.update == "prefix" else "BOTTLENECK"
    assert {"peft_type": kind, **keys.get("peft", {})}.items() <= found["peft"].items()
    assert (found["trainable_dtype"], found["trainable_parameters"]) == ("float32", parameters)
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


def generates(model, tokenizer):
    """Plain transformers' answers to two prompts of different lengths, one of them padded."""
    batch = tokenizer(
        ["hello", "where is my parcel, please?"], padding=True, padding_side="left",
        return_tensors="pt", return_token_type_ids=False,
    )  # fmt: skip
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=4, do_sample=False)


@pytest.fixture
def moe(make, tiny_moe):
    """A job on the tiny mixture of experts."""
    return lambda **keys: make(**{"rank": 4, "max_steps": 2, **keys}, job_model=tiny_moe)


def test_a_lora_is_evaluated_and_loads_everywhere(moe, capsys):
    """LoRA on a mixture corrects attention alone, and is the same model in PEFT and as W + BA."""
    job = moe()
    result = trained(job)
    said = capsys.readouterr().err
    assert "trained without the load-balancing loss, because experts and routers are frozen" in said
    names = ", ".join(f"self_attn.{name}_proj" for name in "koqv")
    assert f"target_modules all-linear corrects {names}, not" in said
    assert result["evaluation"]["holdout_loss_after"] < result["evaluation"]["holdout_loss_before"]
    checks = {check["name"]: check for check in result["checks"]}
    assert checks["saved-model-is-the-trained-one"]["ok"]
    assert checks["the-same-without-peft"]["ok"]
    assert "can be applied as W + BA" in checks["the-same-without-peft"]["text"]
    again = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    assert generates(again, AutoTokenizer.from_pretrained(job.output)).shape[0] == 2


def test_a_whole_mixture_is_resumed_judged_and_saved_with_the_settings_of_its_base(
    moe, tiny_moe, monkeypatch, tmp_path, capsys
):
    """transformers holds all experts in one tensor and saves each by itself, so what reads them
    must get the trained ones; without routers in config.json, plain generate takes a padded batch.
    """
    keys = {**FULL, "save_steps": 1, "max_steps": 3, "job_judge": False}
    whole, broken = (moe(**keys, job_run=tmp_path / name) for name in ("whole", "broken"))
    trained(whole)
    assert "trained with the load-balancing loss, weight 0.001" in capsys.readouterr().err
    break_at(3, broken, monkeypatch)
    sft.train(replace(broken, part=TRAIN))
    assert same(weights(broken), weights(whole))
    assert all(check["ok"] for check in trained(replace(broken, part=JUDGE))["checks"])
    saved, base = (
        json.loads((folder / "config.json").read_text()) for folder in (whole.output, tiny_moe)
    )
    kept = {"output_router_logits", "router_aux_loss_coef"}
    assert {key: saved[key] for key in kept} == {key: base[key] for key in kept}
    again = AutoModelForCausalLM.from_pretrained(whole.output, dtype=torch.float32)
    assert generates(again, AutoTokenizer.from_pretrained(whole.output)).shape[0] == 2


def test_a_base_that_returns_router_logits_is_silent_until_it_is_saved(tmp_path):
    """A model in memory can generate, and what is saved has the base's own settings."""
    model = silence_routers(tiny_mixture("mixtral", output_router_logits=True))
    assert model.config.output_router_logits is False
    model.config.router_aux_loss_coef = 0.0
    silence_routers(model)
    assert model.config.router_aux_loss_coef == 0.001
    save_weights(model, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["output_router_logits"], saved["router_aux_loss_coef"]) == (True, 0.001)
    assert model.config.output_router_logits is False


@pytest.fixture
def base_trainer(tmp_path):
    """Our SFT trainer on a mixture that balances its experts, without a run around it."""

    def build(**arguments):
        model = silence_routers(tiny_mixture("qwen3_moe"))
        config = SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False,
            dataset_kwargs={"skip_prepare_dataset": True}, router_aux_loss_coef=0.5, **arguments,
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]], "labels": [[-100, 4, 5, 6]]})
        tokenizer = byte_level(("<e>",), eos="<e>")
        trainer = SFT(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        silence_routers(model)
        return trainer

    return build


def batch_of():
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def test_training_adds_the_balancing_loss(base_trainer):
    """The model's balancing loss times its weight is shared by accumulated steps."""
    trainer = base_trainer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    batch = batch_of()
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        there = trainer.model(**inputs, output_router_logits=True)
        logits, labels = there.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        tokens = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        alone = trainer.compute_loss(trainer.model, dict(batch))
        count = torch.tensor(20)
        shared = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    assert float(there.aux_loss) > 1  # it is 2 if every expert gets as many tokens
    assert float(alone) == pytest.approx(float(tokens / 6 + 0.5 * there.aux_loss), rel=1e-5)
    assert float(shared) == pytest.approx(float(tokens / 20 + 0.5 * there.aux_loss / 4), rel=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"label_smoothing_factor": 0.1}, {"loss_type": "dft"}])
def test_evaluation_is_the_plain_loss_without_other_processes(arguments, base_trainer, monkeypatch):
    """It counts the tokens alone and asks nothing of processes that are in training already."""
    trainer = base_trainer(**arguments)
    why = "a collective operation in an evaluation"
    monkeypatch.setattr(trainer.accelerator, "gather_for_metrics", lambda *_: pytest.fail(why))
    trainer.model.eval()
    batch = batch_of()
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, dict(batch)))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = trainer.model(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("qwen3_moe", "attention-and-shared"),
        *((family, wanted) for family in FAMILIES for wanted in ("all-linear", "with-experts")),
    ],
)
def test_lora_never_corrects_a_router(family, wanted, tmp_path):
    """Only with-experts adds routed experts, and plain PEFT loads the result."""
    keys = {
        "rank": 2, "alpha": None, "dropout": 0.0, "rslora": False, "train_embeddings": False,
        "target_modules": wanted,
    }  # fmt: skip
    stage = stage_of("sft", target_modules=wanted)
    base = tiny_mixture(family)
    experts = find_experts(base)
    model = get_peft_model(base, load_update("lora").peft_config(stage, keys, base)).eval()
    names = [
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]

    def within(parts):
        return [name for name in names if any(f"{part}." in name for part in parts)]

    assert not within(experts.routers)
    routed = within(experts.modules)
    # Two tensors of experts in a layer, A and B for each.
    assert len(routed) == (4 * len(experts.modules) if wanted == "with-experts" else 0)
    assert any("q_" in name for name in names)
    if family in ("deepseek_v3", "llama4_text"):
        assert any(".shared_expert" in name for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    ids = torch.arange(3, 13)[None]
    there = model(input_ids=ids).logits
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(tiny_mixture(family), tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, there)


def test_layers_that_peft_refuses_are_left_out():
    """The output projections of Mamba layers, whose kernels read the weights themselves."""
    model = SimpleNamespace(config=SimpleNamespace(model_type="nemotron_h"))
    assert is_refused("backbone.layers.0.mixer.out_proj", model)
    assert not is_refused("backbone.layers.0.mixer.in_proj", model)


@pytest.mark.parametrize(
    ("model", "keys", "match"),
    [
        ("dense", {}, "needs a mixture of experts"),
        ("mixture", {"target_modules": ["q_proj", "gate"]}, "names no layer of this model: gate"),
        ("mixture", {"target_modules": "with-expert"}, "matches none"),
        ("mixture", {"dropout": 0.1}, "cannot have dropout"),
        ("mixture", {"peft": {"use_dora": True}}, "cannot have peft"),
        ("mixture", {"peft": {"init_lora_weights": "orthogonal"}},
         "added to one tensor of all of them"),
        ("mixture", {"peft": {"target_parameters": ["experts.w1"]}},
         r"names no parameter of this model: experts\.w1(.|\n)*mlp\.experts\.down_proj"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_had_are_bad_input(model, keys, match, make, moe):
    """A dense model's experts, routers, misspelt names and unfit combinations are refused."""
    build = moe if model == "mixture" else make
    with pytest.raises(InputError, match=match):
        sft.train(build(**{"target_modules": "with-experts", **keys}))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_every_objective_is_judged_whatever_number_of_processes_trained_it(
    processes, tiny_moe, pairs, tmp_path
):
    """What one process or two have saved loads and generates in another."""
    (tmp_path / "own.py").write_text(REWARD)
    jobs, plans = {}, []
    for name, update in (("sft", "full"), ("dpo", "lora"), ("grpo", "lora")):
        stages = (stage_of(name, **keys_of(name, update, max_steps=2)),)
        jobs[name] = job_in(tmp_path, stages, model=tiny_moe, data=pairs, run=tmp_path / name)
        plan = structs.replace(jobs[name].plan, launch=Launch(processes=processes))
        plans.append(tmp_path / f"{name}.yaml")
        plans[-1].write_text(plan_text(plan))
    if processes == 1:
        train_all(plans)
    else:
        torchrun("tests.trainers.moe", *plans)
        train_all(plans, part=JUDGE)
    for name, job in jobs.items():
        result = result_of(job)
        assert result["evaluation"] is not None
        found = {check["name"]: check["ok"] for check in result["checks"]}
        assert found["saved-model-is-the-trained-one"]
        if name != "sft":
            assert found["the-same-without-peft"]
            model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
            assert generates(model, AutoTokenizer.from_pretrained(job.output)).shape[0] == 2


def test_saved_experts_are_no_damage_where_a_second_model_has_no_room(tmp_path):
    """transformers saves them under other names than it keeps them; what has a name is compared."""
    model = tiny_mixture("qwen3_moe")
    model.save_pretrained(tmp_path)
    assert _same_tensors(model, tmp_path)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    assert not _same_tensors(model, tmp_path)


@pytest.mark.parametrize("update", ["lora", "adapter", "prefix", "ia3"])
def test_a_module_whose_tensor_goes_by_another_name_is_not_the_trained_one(
    update, trained_once, tmp_path
):
    """Where a second model has no room, every tensor of a module has to be on the disk."""
    model = AutoPeftModelForCausalLM.from_pretrained(trained_once("sft", update).output)
    saved = load_file(trained_once("sft", update).output / "adapter_model.safetensors")
    save_file(saved, tmp_path / "adapter_model.safetensors")
    assert _same_tensors(model, tmp_path)
    saved["other"] = saved.pop(next(iter(saved)))
    save_file(saved, tmp_path / "adapter_model.safetensors")
    assert not _same_tensors(model, tmp_path)
