"""Whole stages on a pretended GPU, and two steps of the plans that advice writes for GPUs.

The tensors are real CPU tensors of a tiny model, not torch's fake ones: generation, held-out
evaluation and bitsandbytes read values, which a fake tensor does not have. Sizes are cut to what a
CPU does at once; pretend_gpu.py says what this cannot show.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch")

from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from advisor.advice.advise import candidate_of
from advisor.advice.planning import make_plan
from advisor.api import Answers
from advisor.commands.session import Stated, advise_on
from advisor.estimate.run import Run
from advisor.methods import methods, schemes
from advisor.methods.composition import compose
from advisor.plan.model import Launch, Stage
from advisor.situation.models import model_shape
from tests.trainers.alignment import REWARD, keys_of
from tests.trainers.conftest import job_in
from tests.trainers.pretend_gpu import GPU, HOST, pretend_gpu
from tests.trainers.runs import break_at, look_before, result_of, write_rows
from trainers.job.job import Job
from trainers.keep.progress import RunCallback
from trainers.stage import load as module
from trainers.stage import run as stage_run
from trainers.start import loading
from trainers.step import settings

MODEL = "Qwen/Qwen3-8B"  # the one the plans are for: large enough that settings differ
# A name of a plan's precision -> the GPU that advice is asked about, and what an expert changes.
MACHINES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "bf16 GPU": ("A100 80GB", (8, 0), {}),
    "fp16 GPU": ("T4", (7, 5), {}),
    "float32 weights": ("RTX 4090", (8, 9), {"weights_dtype": "float32", "precision": "mixed"}),
}
CLASSES = "classes"  # sft with `head: classes`
OBJECTIVES = (*methods().objectives, CLASSES)
SMALL = {
    "response_tokens": 4, "teacher": "model", "generations": 2, "reward": "own.py:score",
    "prefix_tokens": 4, "rank": 8, "ppo_epochs": 1,
}  # fmt: skip


@cache
def advice_for(gpu: str) -> Any:
    answers = Answers.from_dict({"task": "qa", "gpu": gpu, "model": MODEL})
    return advise_on(Stated(answers=answers, warnings=()))


def small_stage(objective: str, scheme: str, machine: str) -> Stage:
    """The stage that advice writes, in test size, without pages, which ask CUDA for memory."""
    gpu, _, changes = MACHINES[machine]
    advice, ruleset = advice_for(gpu)
    chain = "sft" if objective == CLASSES else objective
    candidate = candidate_of(advice, ruleset, compose(chain, scheme, per_task=False))
    stage = make_plan(advice, candidate, ruleset)[0].stages[-1]
    own = methods().objective(stage.objective).keys | methods().update(stage.update).keys
    options = {**stage.options, **{key: value for key, value in SMALL.items() if key in own}}
    if objective == CLASSES:
        options["head"] = "classes"
    # The advised one is for bfloat16 weights.
    optimizer = "adamw_fused" if changes and stage.update == "full" else stage.optimizer
    return replace(
        stage, micro_batch_size=4 if stage.objective == "kto" else 2,
        grad_accum=1 if stage.objective == "ppo" else 2, seq_len=48, max_steps=2,
        optimizer=optimizer.replace("paged_", ""), options=options, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The model, half as wide, and data of every kind."""
    found = tmp_path_factory.mktemp("fake-gpu")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(found / "model")
    torch.manual_seed(0)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    config = LlamaConfig.from_pretrained(tiny_model, **narrow)
    LlamaForCausalLM(config).save_pretrained(found / "model")
    (found / "own.py").write_text(REWARD)
    pairs = [
        {"prompt": f"Where is {n}?", "chosen": f"Thank you, {n}.", "rejected": f"Go, {n}."}
        for n in range(16)
    ]
    write_rows(found / "pairs.jsonl", pairs)
    for name, rows in {
        "sft": ({"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs),
        "cpt": ({"text": f"The red kettle {n} boils water for tea. " * 3} for n in range(16)),
        CLASSES: ({"text": f"cup {n}", "label": "ab"[n % 2]} for n in range(16)),
    }.items():
        write_rows(found / f"{name}.jsonl", rows)
    return found


@dataclass
class Seen:
    """What an optimizer found at its steps."""

    steps: int = 0
    parameters: dict[int, torch.nn.Parameter] = field(default_factory=dict)
    faults: set[str] = field(default_factory=set)
    state_dtypes: set[torch.dtype] = field(default_factory=set)

    def before(self, optimizer: Any, *_: Any) -> None:
        groups = getattr(optimizer, "optimizer", optimizer).param_groups
        for parameter in (one for group in groups for one in group["params"]):
            self.parameters[id(parameter)] = parameter
            gradient = parameter.grad
            if parameter.device != GPU or gradient is None:
                has = "no" if gradient is None else "a"
                self.faults.add(f"{parameter.shape} on {parameter.device} with {has} gradient")
            elif (gradient.dtype, gradient.device) != (parameter.dtype, GPU):
                there = f"a gradient of {gradient.dtype} on {gradient.device}"
                self.faults.add(f"{parameter.shape}, {parameter.dtype}, has {there}")

    def after(self, optimizer: Any, *_: Any) -> None:
        self.steps += 1
        states = getattr(optimizer, "optimizer", optimizer).state.items()
        found = [
            (parameter, name, value)
            for parameter, state in states
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.dim()
        ]
        self.faults |= {f"the state {name} is on {one.device}" for _, name, one in found
                        if one.device != GPU}  # fmt: skip
        self.state_dtypes |= {one.dtype for parameter, _, one in found
                              if one.shape == parameter.shape}  # fmt: skip


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Seen, list[Any]]]:
    """What optimizers saw, and the models that were built for training."""
    seen, models = Seen(), []
    original = module.build_trainer

    def build(*args: Any, **rest: Any) -> Any:
        trainer = original(*args, **rest)
        models.append(trainer.model)
        return trainer

    for place in (module, stage_run):
        monkeypatch.setattr(place, "build_trainer", build)
    hooks = (register_optimizer_step_pre_hook(seen.before),
             register_optimizer_step_post_hook(seen.after))  # fmt: skip
    yield seen, models
    for hook in hooks:
        hook.remove()


def cell(objective: str, scheme: str, machine: str) -> Any:
    """A cell in its suite: the default has every scheme for sft and one for each other objective,
    slow two more of each, long the rest; machines take turns, so that each meets all.
    """
    first, second = OBJECTIVES.index(objective), list(schemes()).index(scheme)
    marks: Any = pytest.mark.slow if (first + second) % 3 == 1 else pytest.mark.long
    if objective == "sft" or first % len(schemes()) == second:
        marks = ()
    if list(MACHINES)[(first + second) % len(MACHINES)] != machine:
        marks = pytest.mark.long
    name = f"{objective}-{scheme}-{machine.replace(' ', '-')}"
    return pytest.param(objective, scheme, machine, marks=marks, id=name)


def scaled_by(scale: float) -> Any:
    """The scale that a float16 loss begins with."""
    device, _, *rest = torch.amp.GradScaler.__init__.__defaults__
    return mock.patch.object(torch.amp.GradScaler.__init__, "__defaults__", (device, scale, *rest))


def on_gpu(job: Job) -> Job:
    return dataclasses.replace(job, plan=replace(job.plan, launch=Launch(device="cuda")))


@pytest.mark.parametrize(
    ("objective", "scheme", "machine"),
    [cell(*names) for names in product(OBJECTIVES, schemes(), MACHINES)],
)
def test_a_plan_for_a_gpu_trains_in_its_dtypes(
    objective: str, scheme: str, machine: str, folder: Path, tmp_path: Path, watch: Any
) -> None:
    """All that trains is float32 unless the plan says pure, and states are as estimated."""
    seen, models = watch
    stage = small_stage(objective, scheme, machine)
    data = objective if objective in ("sft", "cpt", CLASSES) else "pairs"
    keys = {"data": folder / f"{data}.jsonl", "run": tmp_path / "run", "dry_run": True}
    job = on_gpu(job_in(folder, (stage,), model=folder / "model", **keys))
    # The scale that float16 begins with makes the first steps overflow, and skips them.
    with scaled_by(2.0**8), pretend_gpu(capability=MACHINES[machine][1]):
        import_module(f"trainers.{stage.objective}").train(job)
    assert seen.steps >= 2 or (seen.steps >= 1 and stage.weights_dtype == "float16")
    assert not seen.faults
    for model in models:  # PPO's optimizer is given the value head besides
        trained = {id(one) for one in model.parameters() if one.requires_grad}
        given = set(seen.parameters)
        assert trained == (given & trained if objective == "ppo" else given)
    sizes: Counter[torch.dtype] = Counter()
    for parameter in seen.parameters.values():
        sizes[parameter.dtype] += parameter.numel()
    # Under pure the base trains in the dtype it is loaded in; PPO's new value head stays float32.
    wanted = getattr(torch, stage.weights_dtype) if stage.precision == "pure" else torch.float32
    assert sizes.most_common(1)[0][0] == wanted
    assert set(sizes) <= {wanted, torch.float32}
    # The optimizer's states and the trained weights are as wide as the estimator says.
    assert wanted.itemsize == Run(stage=stage, model=model_shape(MODEL)[0]).train_bytes
    wide = {dtype for dtype in seen.state_dtypes if dtype.itemsize > 1}
    if "8bit" in stage.optimizer:  # bitsandbytes keeps those of small and looked-up ones in float32
        modules = [one for model in models for one in model.modules()]
        looked_up = {id(one.weight) for one in modules if isinstance(one, torch.nn.Embedding)}
        large = any(
            one.numel() >= 4096 for one in seen.parameters.values() if id(one) not in looked_up
        )
        assert (torch.uint8 in seen.state_dtypes) == large
        assert wide <= {torch.float32}
    else:
        assert {wanted} <= wide <= {wanted, torch.float32}


GPU_KEYS = {"weights_dtype": "bfloat16", "precision": "mixed"}


def train(job: Job) -> dict[str, Any]:
    """What the stage says of itself, trained on the pretended GPU."""
    with pretend_gpu():
        import_module(f"trainers.{job.stage.objective}").train(on_gpu(job))
    return result_of(job)


def test_a_model_left_on_the_host_is_found(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is not moved fails as on a GPU, once accelerate is kept from moving it."""
    original = loading.load_base

    def on_host(job: Job, device: Any, *args: Any, **rest: Any) -> Any:
        return original(job, HOST, *args, **rest)

    monkeypatch.setattr(loading, "load_base", on_host)
    monkeypatch.setattr("transformers.Trainer._move_model_to_device", lambda *_: None)
    monkeypatch.setattr("accelerate.Accelerator.prepare_model", lambda self, model, **_: model)
    with pytest.raises(RuntimeError, match="same device"):
        train(make(**GPU_KEYS, job_judge=False))


SLOW = {("rm", "prefix"), ("grpo", "ia3"), ("ppo", "lora")}


@pytest.mark.parametrize(
    ("objective", "update"),
    [
        ("sft", "lora"),
        *(
            pytest.param(*cell, marks=pytest.mark.slow if cell in SLOW else pytest.mark.long)
            for cell in product(
                ("dpo", "orpo", "kto", "rm", "grpo", "rloo", "ppo"),
                ("full", "lora", "adapter", "prefix", "ia3"),
            )
        ),
    ],
)
def test_every_objective_runs_whole_on_the_gpu(
    align: Callable[..., Job], objective: str, update: str
) -> None:
    """From the evaluation before to that after, all is on the plan's device, under every update."""
    result = train(align(objective, **keys_of(objective, update, **GPU_KEYS, max_steps=2)))
    assert (result["resolved"]["device"], result["resolved"]["autocast"]) == ("cuda:0", "bfloat16")
    assert result["measured"]["counter"] == "allocated"
    found = result["evaluation"]
    assert found["rows"] > 0 if objective in ("sft", "rm") else found["metrics"]
    assert any("loaded by" in check["text"] and check["ok"] for check in result["checks"])


def test_a_run_resumes_on_the_gpu(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States read from a checkpoint go back to the GPU, and training goes on."""
    job = make(**GPU_KEYS, save_steps=1, job_judge=False)
    with pretend_gpu():
        break_at(2, on_gpu(job), monkeypatch)
    assert train(job)["steps"] == 3


def test_a_dry_run_forgives_a_step_that_the_scaler_skips(make: Callable[..., Job]) -> None:
    """The first scale of a float16 loss is a guess, which may overflow."""
    job = make(weights_dtype="float16", precision="mixed", job_dry_run=True)
    with scaled_by(2.0**100), pretend_gpu(capability=(7, 5)):
        import_module("trainers.sft").train(on_gpu(job))
    assert (job.output / "dry_run.json").is_file()


@pytest.mark.parametrize(
    ("keys", "looks"),
    [
        ({"packing": True}, 1),
        ({"grad_accum": 2}, 4),
        ({"update": "full", "optimizer": "muon"}, 2),
        ({"update": "full", "optimizer": "adamw_split", "precision": "pure"}, 2),
    ],
)
def test_nothing_holds_the_gpu_up(
    keys: dict[str, Any], looks: int, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only transformers waits, for attention's mask: twice a padded micro-batch, else once."""
    monkeypatch.setattr(settings, "LOGGED_LINES", 1)
    ends: list[int] = []
    with pretend_gpu() as calls:
        waits = calls.operations.waits
        look_before(
            monkeypatch, RunCallback, "on_step_end", lambda *_, **__: ends.append(len(waits))
        )
        job = make(**{**GPU_KEYS, "max_steps": 8, "save_steps": 100, "job_judge": False, **keys})
        import_module("trainers.sft").train(on_gpu(job))
    # Without the first line, which step 1 leaves, and the last.
    steps = [waits[begin:end] for begin, end in pairwise(ends)][1:-1]
    assert len(steps) == 5
    assert {wait for step in steps for wait in step} == {
        "_local_scalar_dense in transformers.masking_utils"
    }
    assert max(map(len, steps)) == looks
