"""Losses, gradients and dtypes, beside plain TRL and by hand; scores, intervals and verdicts."""

import itertools
import math
from collections import defaultdict
from contextlib import nullcontext
from copy import deepcopy
from importlib import import_module
from pkgutil import resolve_name
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

import random
import types

import peft
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback, modeling_utils
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOConfig, GRPOTrainer

from advisor.ground.errors import InputError
from tests.trainers.alignment import FULL, QUESTIONS, REWARD
from tests.trainers.fitting import sequence
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import look_before, metrics, plain_loss, trained, write_rows
from trainers import grpo
from trainers.evaluation import loss
from trainers.evaluation.saved_result import difference
from trainers.job.evaluating import evaluating, generating
from trainers.rollouts import transformers_engine
from trainers.rollouts.transformers_engine import TransformersEngine, row_bytes
from trainers.rows.packing import in_batches
from trainers.rows.preference import preference_columns
from trainers.rows.row import IGNORED
from trainers.say.progress import Parts
from trainers.stage.load import build_trainer, load_stage
from trainers.step.answer_loss import (
    Head,
    answer_log_probs,
    answer_places,
    head_of,
    token_log_probs,
)
from trainers.step.trained_dtype import dither, round_to_base, train_in_float32

OBJECTIVES = {
    "sft": "trainers.sft:SFT", "classes": "trainers.heads:Classifier",
    "rm": "trainers.rm:RewardModel", "dpo": "trainers.dpo:DPO", "kto": "trainers.kto:KTO",
    "orpo": "trainers.orpo:ORPO", "simpo": "trainers.simpo:SimPO", "grpo": "trainers.grpo:GRPO",
    "rloo": "trainers.rloo:RLOO",
}  # fmt: skip
ROWS = 16
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """Sixteen rows for every kind of objective: pairs, chats, classes; of different lengths."""
    folder = tmp_path_factory.mktemp("sixteen")
    asked = [f"{QUESTIONS[n % 5]}, order {n}?" + " please" * (n % 4) for n in range(ROWS)]
    said = ["Thank you for writing." + " We look at it." * (n % 3) for n in range(ROWS)]
    rows = {
        "pairs": lambda n: {"prompt": asked[n], "chosen": said[n], "rejected": f"Go away {n}."},
        "chats": lambda n: {"prompt": asked[n], "completion": said[n]},
        "classes": lambda n: {"text": asked[n], "label": "ab"[n % 2]},
    }
    for name, row in rows.items():
        write_rows(folder / f"{name}.jsonl", map(row, range(ROWS)))
    return folder


@pytest.fixture
def job_of(align, sixteen, tmp_path):
    """The job of an objective on those rows, whose optimizer is SGD."""
    (tmp_path / "own.py").write_text(REWARD)

    def build(name, **keys):
        file = {"sft": "chats", "classes": "classes"}.get(name, "pairs")
        rollouts = {"generations": 4, "response_tokens": 6, "reward": "own.py:score"}
        own = {"grpo": rollouts, "rloo": rollouts, "classes": {"head": "classes"}}.get(name, {})
        common = {
            "holdout": 0.0, "max_steps": 1, "warmup": 0.0, "scheduler": "constant",
            "optimizer": "sgd", "dropout": 0.0, "job_data": sixteen / f"{file}.jsonl",
        }  # fmt: skip
        return align("sft" if name == "classes" else name, **{**common, **own, **keys})

    return build


def built(job, name, *, steps=1):
    """(our trainer for the job, what it logs), with nothing trained yet."""
    lines, callback = [], TrainerCallback()
    callback.store = None  # no checkpoints
    callback.on_log = lambda *_, logs, **__: lines.append(logs) if "loss" in logs else None
    loaded = load_stage(job, resolve_name(OBJECTIVES[name])(), Parts(name, shown=False))
    trainer = build_trainer(loaded, loaded.sequences, steps=steps, callback=callback)
    trainer.own_data = loaded.data
    return trainer, lines


def fixed_answers(monkeypatch, trainer_class):
    """Let the engine and TRL write the same answers; gives how many prompts each call was for."""
    calls = []

    def generate(prompt_ids):
        calls.append(len(prompt_ids))
        counts = defaultdict(itertools.count)  # of the answers to a prompt
        starts = [sum(ids) * 7 + next(counts[tuple(ids)]) * 31 for ids in prompt_ids]
        return [[5 + (start + step * 13) % 250 for step in range(6)] for start in starts]

    monkeypatch.setattr(
        "trainers.rollouts.transformers_engine.generate_batch",
        lambda model, prompts, *_: generate(prompts),
    )
    monkeypatch.setattr(
        trainer_class, "_generate_single_turn", lambda self, ids, *_, **__: (generate(ids), None)
    )
    return calls


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulation_does_not_change_loss_or_gradient(name, job_of, monkeypatch):
    """Sixteen rows at once and eight times two are one step, for every objective."""
    if name in ("grpo", "rloo"):
        fixed_answers(monkeypatch, getattr(trl, f"{name.upper()}Trainer"))
    found = []
    for size in (ROWS, 4 if name == "kto" else 2):  # fewer rows have no estimate of KL
        trainer, lines = built(job_of(name, micro_batch_size=size, grad_accum=ROWS // size), name)
        trainer.train()
        found += numbers(lines)
    assert len(found) == 2
    # ORPO learns the mean over the tokens of each micro-batch, and KTO's reference point is that of
    # a micro-batch.
    loose = name in ("kto", "orpo")
    assert found[1] == pytest.approx(found[0], rel=0.15 if loose else 2e-3, abs=1e-5)
    assert found[0][1] > 1e-4


def beside_plain(job, name, folder, *, steps, kind, config, arguments, **parts):
    """What our trainer logs, and what TRL's of `config` and `parts` does from the same weights."""
    trainer, lines = built(job, name, steps=steps)
    start = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    peft_config = trainer.model.peft_config["default"]
    trainer.train()
    common = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "optim": "adamw_torch", "weight_decay": 0.0, "seed": 42, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "gradient_checkpointing": False,
    }  # fmt: skip
    columns = parts.pop("columns")(trainer.own_data.train)
    plain = kind(
        model=AutoModelForCausalLM.from_pretrained(job.base_model),
        args=config(**{**common, **arguments}), train_dataset=Dataset.from_dict(columns),
        processing_class=trainer.processing_class, peft_config=peft_config, **parts,
    )  # fmt: skip
    plain.model.load_state_dict(start)
    plain.train()
    return lines, plain.state.log_history


def numbers(lines):
    """(loss, gradient norm) of each step."""
    return [(line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]


COMPARED = {
    "micro_batch_size": 4, "grad_accum": 2, "optimizer": "adamw", "learning_rate": 1e-2,
    "weight_decay": 0.0, "seed": 42,
}  # fmt: skip


class PlainDPO(trl.DPOTrainer):
    """TRL's, on rows that are tokens already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def answer_columns(rows):
    return {
        "input_ids": [list(row.input_ids) for row in rows],
        "completion_mask": [[int(label != -100) for label in row.labels] for row in rows],
    }


@pytest.mark.parametrize(
    ("name", "own", "kind", "config", "arguments", "columns"),
    [
        ("sft", {}, trl.SFTTrainer, trl.SFTConfig, {"completion_only_loss": True}, answer_columns),
        pytest.param(
            *("dpo", {"beta": 0.1}, PlainDPO, trl.DPOConfig, {"beta": 0.1}, preference_columns),
            marks=SLOW,
        ),
    ],
    ids=["sft", "dpo"],
)
def test_ten_steps_are_those_of_plain_trl(
    name, own, kind, config, arguments, columns, job_of, tmp_path
):
    """Loss and gradient norm are TRL's own, although ours leaves out unlearned positions."""
    mine, plain = beside_plain(
        job_of(name, **COMPARED, max_steps=10, **own), name, tmp_path / "plain", steps=10,
        kind=kind, config=config, arguments={"max_length": None, **arguments}, columns=columns,
    )  # fmt: skip
    expected = numbers(plain)
    assert len(expected) == 10
    assert name == "sft" or expected[0][0] == pytest.approx(math.log(2), abs=1e-4)
    assert numbers(mine) == [pytest.approx(one, rel=2e-3, abs=1e-5) for one in expected]


def test_the_first_step_of_grpo_is_that_of_plain_trl(job_of, tmp_path, monkeypatch):
    """With the same answers, loss, gradient norm and rewards are those of TRL's GRPOTrainer."""
    fixed_answers(monkeypatch, GRPOTrainer)

    def score(prompts, completions, **others):
        return [text.count("e") / (1 + len(text)) for text in completions]

    own = {"num_generations": 4, "max_completion_length": 6, "gradient_accumulation_steps": 8}
    mine, plain = beside_plain(
        job_of("grpo", **COMPARED, beta=0.0), "grpo", tmp_path / "plain", steps=1,
        kind=GRPOTrainer, config=GRPOConfig, arguments={"beta": 0.0, **own},
        columns=lambda rows: {"prompt": [row.prompt for row in rows]}, reward_funcs=score,
    )  # fmt: skip
    (expected,) = numbers(plain)
    assert numbers(mine) == [pytest.approx(expected, rel=2e-3, abs=1e-5)]
    rewards = {key: one for key, one in mine[0].items() if key in ("reward", "reward_std")}
    other = next(line for line in plain if "reward" in line)
    assert rewards == pytest.approx({key: other[key] for key in rewards}, rel=1e-5)
    assert expected[1] > 1e-3


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_answers_of_a_step_are_written_together(name, job_of, monkeypatch):
    """One call writes the answers of an optimizer step, or as many whole groups as memory holds."""
    calls = fixed_answers(monkeypatch, getattr(trl, f"{name.upper()}Trainer"))
    # Two prompts with 4 answers each fit, as the plan says, and 3 more.
    for most, wanted in ((64, [2 * 4 * 4]), (3, [11, 11, 10])):
        calls.clear()
        monkeypatch.setattr(
            TransformersEngine, "rows_at_once", lambda self, *_, most=most: self.least + most
        )
        trainer, lines = built(job_of(name, micro_batch_size=2, grad_accum=4), name)
        trainer.train()
        assert calls == wanted
        assert lines[0]["reward"] != 0
    # Too few prompts for a step, or for its last one: no prompt is left out.
    assert grpo.filled([1, 2, 3, 4, 5], 4) == [1, 2, 3, 4, 5, 1, 2, 3]
    assert grpo.filled([1, 2], 5) == [1, 2, 1, 2, 1]


def test_as_many_answers_at_once_as_memory_holds(tiny_model):
    """The device's memory bounds the answers written together, never below what the plan says."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def at_once(tokens, rows, **options):
        engine = TransformersEngine(nullcontext, models=lambda: [model], **options)
        return engine.rows_at_once([[0]] * rows, tokens - 1)

    assert at_once(100, 64, least=2) == 64
    # Two layers of two heads of 16 hold 2*2*2*16 = 128 numbers of a token; reading a prompt needs
    # 8*64 + 3*128 = 896: 4,096 bytes, and the logits a little more: 2 GiB hold 15 of 32,768.
    assert (at_once(2**15, 64, least=2), at_once(2**20, 64, least=2)) == (15, 2)
    assert at_once(2**20, 7) == 7
    # A stage that ran out of memory and starts with half its micro-batch generates half as many.
    assert at_once(2**15, 64, least=2, room=0.5) == 7


def test_a_frozen_weight_is_cast_once_for_all_tokens_of_an_answer(tiny_model):
    """Under autocast on a CPU; the numbers are the same, and it is frozen again afterwards."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    frozen = [one for one in model.parameters() if not one.requires_grad]
    matrices = {one.shape for one in frozen if one.dim() == 2}
    ids = torch.arange(8)[None]

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape in matrices:
                self.count += args[0].dtype == torch.float32
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), evaluating(model):
        plain = model(input_ids=ids).logits
    with torch.autocast("cpu", torch.bfloat16), generating(model):
        assert torch.equal(model(input_ids=ids).logits, plain)
        with Casts() as casts:
            model(input_ids=ids)
    assert casts.count == 0
    assert frozen
    assert not any(one.requires_grad for one in frozen)


def test_layers_of_different_sizes_are_counted_one_by_one():
    """Gemma 4 has two widths of heads, Gemma 3n one per MLP; Mamba keeps no more for long texts."""

    def per_token(config):
        model = SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)]))
        return (row_bytes(model, 2) - row_bytes(model, 1)) // 4

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 60}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    wide = {**sizes, **heads, **kinds, "num_kv_shared_layers": 0}
    gemma4 = transformers.Gemma4TextConfig(**wide, intermediate_size=32, global_head_dim=16)
    assert per_token(gemma4) == 2 * 2 * (8 + 16) + 8 * 16 + 3 * 32
    own = {"intermediate_size": [32, 64], "activation_sparsity_pattern": [0.0, 0.0]}
    gemma3n = transformers.Gemma3nTextConfig(**wide, **own)
    assert per_token(gemma3n) == 2 * 2 * (8 + 8) + 8 * 16 + 3 * 64
    mamba = transformers.MambaConfig(**sizes)
    assert per_token(mamba) == 8 * 16 + 3 * mamba.intermediate_size


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_reference_model_is_a_copy_and_never_loaded(name, job_of, monkeypatch):
    """It is a frozen copy of the model that is trained whole."""
    module = import_module(f"trl.trainer.{name}_trainer")
    load = Mock(side_effect=AssertionError("the reference model was loaded again"))
    monkeypatch.setattr(module, "create_model_from_path", load)
    fixed_answers(monkeypatch, getattr(trl, f"{name.upper()}Trainer"))
    job = job_of(name, **FULL, beta=0.1, micro_batch_size=4)
    job.stage.options.pop("dropout")
    trainer, lines = built(job, name)
    trainer.train()
    assert module.create_model_from_path is load
    assert not any(one.requires_grad for one in trainer.ref_model.parameters())
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[0]["grad_norm"] > 0


TIED = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}


@pytest.mark.parametrize(
    ("head", "labels", "lora"),
    [
        ("SequenceClassification", {"num_labels": 1}, {"task_type": "SEQ_CLS"}),
        ("CausalLM", {}, {"task_type": "CAUSAL_LM", **TIED}),
    ],
    ids=["score-head", "tied-embeddings"],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_a_module_trains_is_float32(dtype, head, labels, lora, tiny_model, tmp_path):
    """So float16's loss scaler takes heads and embeddings, and small updates are not lost."""
    half = getattr(torch, dtype)
    torch.manual_seed(0)
    kind = getattr(transformers, f"AutoModelFor{head}")
    model = get_peft_model(
        kind.from_pretrained(tiny_model, dtype=half, **labels),
        LoraConfig(r=2, target_modules="all-linear", **lora),
    )
    ids = torch.arange(3, 23)[None]
    with evaluating(model):
        before = model(input_ids=ids).logits
    train_in_float32(model)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert {one.dtype for one in trained} == {torch.float32}
    with evaluating(model):  # outside autocast too
        logits = model(input_ids=ids).logits
    assert logits.dtype == half
    assert torch.allclose(logits, before, atol=0.02)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == "float16", init_scale=64.0)
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    start = [one.detach().clone() for one in trained]
    with torch.autocast("cpu", half):
        loss = model(input_ids=ids).logits.float().square().sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # raised "Attempting to unscale FP16 gradients"
    scaler.step(optimizer)
    copies = [one for name, one in model.named_parameters() if "modules_to_save" in name]
    assert any(not torch.equal(a, b) for a, b in zip(trained, start, strict=True))
    round_to_base(model)
    assert {one.dtype for one in copies} == {half}
    model.save_pretrained(tmp_path)
    kind = getattr(peft, f"AutoPeftModelFor{head}")
    second = kind.from_pretrained(tmp_path, dtype=half, **labels)
    with evaluating(model), evaluating(second):
        assert torch.equal(model(input_ids=ids).logits, second(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["classes", pytest.param("rm", marks=SLOW), "sft"])
def test_what_is_trained_whole_on_a_16_bit_base_loads_as_it_was_checked(name, job_of):
    """A head or embeddings train in float32 and are rounded once, when training ends."""
    own = {"train_embeddings": True} if name == "sft" else {}
    job = job_of(
        name, weights_dtype="bfloat16", precision="mixed", max_steps=2, micro_batch_size=4,
        job_judge=False, **own,
    )  # fmt: skip
    result = trained(job)
    assert result["resolved"]["trainable_dtype"] == "float32"
    (said,) = [one["text"] for one in result["checks"] if one["name"].startswith("saved")]
    assert name != "sft" or "at most 0 " in said


# Weights that lie on bfloat16 numbers, exactly between two, or as float16 has them.
LIE = {
    "bfloat16": lambda on: on.to(torch.bfloat16).float(),
    "between": lambda on: (LIE["bfloat16"](on).view(torch.int32) + 0x8000).view(torch.float32),
    "float16": lambda on: on.half().float(),
}


@pytest.mark.parametrize("kind", LIE)
def test_a_small_update_has_its_own_size_in_products(kind):
    """A hundredth of a rounding step moves 16-bit weights by as much on average, not by nothing."""
    layer = torch.nn.Linear(256, 512).requires_grad_(False)
    weight = 0.05 * torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    layer.weight.copy_(LIE[kind](weight))
    other = deepcopy(layer)
    before, bias = layer.weight.to(torch.bfloat16), layer.bias.clone()
    dither(layer, 3)
    dither(other, 3)
    assert layer.weight.equal(other.weight)
    assert layer.weight.to(torch.bfloat16).equal(before)
    assert layer.bias.equal(bias)
    size = 0.01 * 2**-7 * layer.weight.abs().mean()
    moved = (layer.weight + size).to(torch.bfloat16).float() - before.float()
    assert float(moved.mean()) == pytest.approx(float(size), rel=0.2)


@SLOW
def test_the_first_updates_count_in_both_precisions(align, smollm, tmp_path):
    """At a small rate the margin in mixed precision is float32's within a factor of two."""
    margins = {}
    for precision in ("pure", "mixed"):
        job = align(
            "dpo", update="full", learning_rate=1e-6, warmup=0.0, max_steps=3, micro_batch_size=2,
            weights_dtype="float32", precision=precision, job_model=smollm, job_judge=False,
            job_run=tmp_path / precision,
        )  # fmt: skip
        trained(job)
        margins[precision] = metrics(job)[2]["reward_margins"]
    assert margins["pure"] / 2 < margins["mixed"] < 2 * margins["pure"]


@pytest.fixture
def flash_like(monkeypatch):
    """An attention that refuses float32 as flash attention does, by name in transformers."""
    name = "flash_like"
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *_, **__: None)

    def attention(module, query, key, value, mask, **others):
        dtype = get_target_dtype(query, module) or query.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return sdpa_attention_forward(
            module, query.to(dtype), key.to(dtype), value.to(dtype), mask, **others
        )

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    yield name
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        del table._global_mapping[name]


@pytest.mark.parametrize(
    "name", ["sft", pytest.param("rm", marks=SLOW), pytest.param("dpo", marks=SLOW), "grpo"]
)
def test_float32_weights_train_under_flash_attention(name, job_of, flash_like):
    """Evaluation, rollouts and the checks of packing and of the saved result do so as well."""
    keys = {"weights_dtype": "float32", "precision": "mixed", "attention": flash_like}
    own = {"packing": True} if name == "sft" else {}
    result = trained(job_of(name, **keys, **own, max_steps=2, micro_batch_size=4, holdout=0.25))
    assert result["checks"][0]["ok"]
    assert result["evaluation"]["rows"] >= 0


def test_float32_alone_is_refused_under_flash_attention(job_of, flash_like):
    """Flash attention has no float32: a stage without mixed precision is refused."""
    job = job_of("sft", weights_dtype="float32", precision="pure", attention=flash_like)
    with pytest.raises(InputError, match="computes in 16 bits"):
        trained(job)


def test_flat_distributions_are_compared_too():
    """A model that finds no token of a large vocabulary likely is compared all the same."""
    flat = torch.log_softmax(torch.linspace(0, 0.5, 49_152)[None], -1)
    assert flat.max() < -10
    moved = flat.clone()
    moved[0, 7] += 0.25
    assert (difference(flat, flat), difference(flat, moved)) == (0, pytest.approx(0.25))
    # A broken model equals nothing.
    assert not difference(flat, flat * float("nan")) <= 1


def by_whole_logits(hidden, head, targets, temperature):
    """The same from all logits at once: log-probabilities and entropies."""
    logits = head.module(hidden).float() * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    found = torch.distributions.Categorical(logits=logits / temperature)
    return found.log_prob(targets), found.entropy().detach()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tile", [3, 2048])
@pytest.mark.parametrize(
    ("scale", "cap", "temperature"), [(1.0, None, 1.0), (0.5, 2.0, 0.7)], ids=["plain", "capped"]
)
def test_tiles_have_the_values_and_gradients_of_whole_logits(device, tile, scale, cap, temperature):
    """Also where the head is scaled, capped and trained, on both ways of computing it."""
    found = []
    for way in ("whole", "tiles"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 200)
        hidden, targets = torch.randn(8, 16), torch.arange(8) * 11
        with pretend_gpu() if (way, device) == ("tiles", "cuda") else nullcontext():
            there = GPU if (way, device) == ("tiles", "cuda") else torch.device("cpu")
            layer, hidden, targets = (one.to(there) for one in (layer, hidden, targets))
            hidden.requires_grad_()
            head = Head(layer, scale, cap)
            if way == "whole":
                log_probs, entropies = by_whole_logits(hidden, head, targets, temperature)
            else:
                log_probs, entropies = token_log_probs(
                    hidden, head, targets, temperature=temperature, with_entropy=True, tile=tile
                )
        assert not entropies.requires_grad
        (log_probs * torch.linspace(0.5, 1, 8)).sum().backward()
        found.append((log_probs.detach(), entropies, hidden.grad, layer.weight.grad))
    for tiles, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(tiles, whole, rtol=1e-4, atol=1e-5)


def test_one_tile_of_logits_is_held_for_the_backward_pass():
    """What several tiles keep is as large as the hidden states, not as the logits."""
    head = Head(torch.nn.Linear(16, 200).requires_grad_(False))
    hidden = torch.randn(30, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        found, entropies = token_log_probs(hidden, head, torch.arange(30), tile=4)
    found.sum().backward()
    assert entropies is None
    assert sum(kept) <= 2 * hidden.numel()


def test_a_head_is_read_from_the_config_as_trl_reads_it():
    """Scales that multiply, one that divides, and HyperCLOVA X's, which multiplies all the same."""

    def model_of(**config):
        config = types.SimpleNamespace(model_type="llama", **config)
        config.get_text_config = lambda: config
        return types.SimpleNamespace(
            config=config, get_output_embeddings=lambda: torch.nn.Linear(2, 3)
        )

    heads = [head_of(model_of()), head_of(model_of(lm_head_multiplier=0.25)),
             head_of(model_of(logits_scaling=4.0, final_logit_softcapping=30.0))]  # fmt: skip
    assert [(head.scale, head.cap) for head in heads] == [(1.0, None), (0.25, None), (0.25, 30.0)]
    assert all(head.is_plain for head in heads)
    assert not Head(torch.nn.Sequential(torch.nn.Linear(2, 3))).is_plain


def test_places_are_those_that_predict_a_learned_token():
    """Never across two rows: the first token of a row is predicted by none."""
    labels = torch.tensor([[7, 8, IGNORED, 9], [5, IGNORED, IGNORED, 6]])
    assert answer_places(labels).tolist() == [0, 2, 6]


def test_what_a_mask_chooses_is_a_wait_and_our_loss_asks_for_none():
    """CUDA counts what a mask chooses below the dispatcher; TRL's head did twice a micro-batch."""
    labels = torch.tensor([[IGNORED, 5, 6, IGNORED], [IGNORED, IGNORED, 7, 8]])
    places = answer_places(labels)
    layer = torch.nn.Linear(16, 200)
    with pretend_gpu() as calls:
        waits = calls.operations.waits
        hidden = torch.randn(2, 4, 16).to(GPU, non_blocking=True).requires_grad_()
        on_gpu = labels.to(GPU, non_blocking=True)
        mask = (labels != IGNORED).to(GPU, non_blocking=True)
        layer.to(GPU)
        waits.clear()
        model = types.SimpleNamespace(
            config=types.SimpleNamespace(get_text_config=lambda: types.SimpleNamespace()),
            get_output_embeddings=lambda: layer,
        )
        log_probs = answer_log_probs(
            model, hidden, labels_BT=on_gpu, places_N=places.to(GPU, non_blocking=True)
        )
        log_probs.sum().backward()
        hidden.detach()[mask] = 0.0
        assert waits == []
        assert hidden[mask].shape == (4, 16)
        assert [wait.split()[0] for wait in waits] == ["index"]


def rows_of(lengths):
    draw = random.Random(0)
    for number, length in enumerate(lengths, start=1):
        ids = [draw.randrange(3, 30) for _ in range(length)]
        yield sequence(number, ids, [IGNORED] * (length // 2) + ids[length // 2 :])


def test_a_batch_has_no_more_tokens_than_so_many_of_the_longest_rows():
    """Padding included; every row is in one batch, and comes back in its place."""
    draw, batches = random.Random(1), []

    def taken(places):
        batches.append(places)
        return places

    for at_once in (1, 3, 8):
        lengths = [draw.randrange(1, 200) for _ in range(50)]
        batches.clear()
        assert in_batches(lengths, at_once, taken, "rows") == list(range(50))
        for batch in batches:
            assert len(batch) * max(lengths[place] for place in batch) <= at_once * max(lengths)
    batches.clear()
    assert (in_batches([5, 5, 20], 1, taken, "rows"), batches) == ([0, 1, 2], [[0, 1], [2]])
    assert in_batches([], 4, taken, "rows") == []


def test_losses_of_rows_in_batches_are_those_of_each_row_alone(tiny_model):
    """Within rounding, in fewer forward passes; the model's forward is as it was."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    trainer = types.SimpleNamespace(
        model=model, processing_class=types.SimpleNamespace(pad_token_id=0),
        args=types.SimpleNamespace(per_device_train_batch_size=4),
        accelerator=types.SimpleNamespace(autocast=torch.no_grad),
    )  # fmt: skip
    rows = list(rows_of([6, 24, 9, 7, 12, 5, 8, 23, 16, 4]))
    before = vars(model).get("forward")
    together = loss.row_losses(trainer, rows)
    assert len(passes) == 2
    assert vars(model).get("forward") is before
    assert together == pytest.approx([plain_loss(model, row) for row in rows], abs=1e-5)


def test_evaluation_computes_in_the_precision_of_the_training(make, monkeypatch):
    """A mixed stage evaluates and writes its sample answers under autocast, before and after."""
    seen = {"log_prob_sums": [], "generate_batch": []}
    for module, name in ((loss, "log_prob_sums"), (transformers_engine, "generate_batch")):
        look_before(monkeypatch, module, name, lambda *_, found=seen[name], **__: found.append(
            torch.is_autocast_enabled("cpu")
        ))  # fmt: skip
    trained(make(precision="mixed", max_steps=4))
    assert seen["log_prob_sums"] == [True] * 4  # held-out rows and general prompts, twice
    # Before and after, and one question on the way as often as there is time for.
    assert len(seen["generate_batch"]) >= 2
    assert all(seen["generate_batch"])
