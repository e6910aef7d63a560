"""The plans that advice writes for GPUs, trained for two steps on a pretended GPU: every objective
under every update, in each of the dtypes that GPUs are given.

The tensors are real CPU tensors of a tiny model, not torch's fake ones: generation, held-out
evaluation and bitsandbytes read values, which a fake tensor does not have. From the plan come
dtypes, precision, optimizer, quantization, packing, recomputation and the options of the method;
sizes are cut to what a CPU does at once. pretend_gpu.py says what this cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

import torch
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
from advisor.plan.model import Launch, Plan, PlanData, Stage
from advisor.situation.models import model_shape
from tests.trainers.alignment import REWARD
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import write_rows
from trainers.job.job import make_job
from trainers.stage import load as module

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
    "response_tokens": 4,
    "teacher": "model",
    "generations": 2,
    "reward": "own.py:score",
    "prefix_tokens": 4,
    "rank": 8,
    "ppo_epochs": 1,
}
# bitsandbytes keeps the states of smaller parameters in float32.
LEAST_8BIT = 4096


@cache
def advice_for(gpu: str) -> Any:
    answers = Answers.from_dict({"task": "qa", "gpu": gpu, "model": MODEL})
    return advise_on(Stated(answers=answers, warnings=()))


def planned(objective: str, scheme: str, machine: str) -> Stage:
    """The stage of the plan that advice writes for this machine."""
    gpu, _, changes = MACHINES[machine]
    advice, ruleset = advice_for(gpu)
    chain = "sft" if objective == CLASSES else objective
    candidate = candidate_of(advice, ruleset, compose(chain, scheme, per_task=False))
    stage = make_plan(advice, candidate, ruleset)[0].stages[-1]
    if objective == CLASSES:
        stage = replace(stage, options={**stage.options, "head": "classes"})
    if changes and stage.update == "full":  # the advised one is for bfloat16 weights
        changes = {**changes, "optimizer": "adamw_fused"}
    return replace(stage, **changes)


def made_small(stage: Stage) -> Stage:
    """The same stage in sizes for a test. Paged optimizers ask CUDA for memory, so the same ones
    without pages take their place.
    """
    own = methods().objective(stage.objective).keys | methods().update(stage.update).keys
    small = {key: value for key, value in SMALL.items() if key in own}
    return replace(
        stage,
        micro_batch_size=4 if stage.objective == "kto" else 2,
        grad_accum=1 if stage.objective == "ppo" else 2,
        seq_len=48,
        max_steps=2,
        optimizer=stage.optimizer.replace("paged_", ""),
        options={**stage.options, **small},
    )


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
    answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    write_rows(found / "sft.jsonl", answers)
    texts = [{"text": f"The red kettle {n} boils water for tea. " * 3} for n in range(16)]
    write_rows(found / "cpt.jsonl", texts)
    labelled = [{"text": f"cup {n}", "label": "ab"[n % 2]} for n in range(16)]
    write_rows(found / f"{CLASSES}.jsonl", labelled)
    return found


@dataclass
class Seen:
    """What an optimizer found at its steps."""

    steps: int = 0
    parameters: dict[int, torch.nn.Parameter] = field(default_factory=dict)
    faults: set[str] = field(default_factory=set)
    state_dtypes: set[torch.dtype] = field(default_factory=set)

    def before(self, optimizer: Any, *_: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        for group in inner.param_groups:
            for parameter in group["params"]:
                self.parameters[id(parameter)] = parameter
                where = f"a parameter of shape {tuple(parameter.shape)}"
                gradient = parameter.grad
                if parameter.device != GPU:
                    self.faults.add(f"{where} is on {parameter.device}")
                if gradient is None:
                    self.faults.add(f"{where} has no gradient")
                elif (gradient.dtype, gradient.device) != (parameter.dtype, GPU):
                    self.faults.add(
                        f"{where}, {parameter.dtype}, has a gradient of {gradient.dtype} on"
                        f" {gradient.device}"
                    )

    def after(self, optimizer: Any, *_: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self.steps += 1
        for parameter, state in inner.state.items():
            for name, value in state.items():
                if not isinstance(value, torch.Tensor) or value.dim() == 0:
                    continue
                if value.device != GPU:
                    self.faults.add(f"the state {name} is on {value.device}")
                if value.shape == parameter.shape:
                    self.state_dtypes.add(value.dtype)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Seen, list[Any]]]:
    """What optimizers saw, and the models that were built for training."""
    seen, models = Seen(), []
    original = module.build_trainer

    def build(*args: Any, **rest: Any) -> Any:
        trainer = original(*args, **rest)
        models.append(trainer.model)
        return trainer

    monkeypatch.setattr(module, "build_trainer", build)
    hooks = (register_optimizer_step_pre_hook(seen.before),
             register_optimizer_step_post_hook(seen.after))  # fmt: skip
    yield seen, models
    for hook in hooks:
        hook.remove()


def suite(objective: str, scheme: str, machine: str) -> str:
    """The suite that a cell is in. The machines take turns, so that each objective and each scheme
    meets each of them.

    Default: every scheme for sft, and one for each other objective. Slow: two more for each. Long:
    the rest.
    """
    first, second = OBJECTIVES.index(objective), list(schemes()).index(scheme)
    if list(MACHINES)[(first + second) % len(MACHINES)] != machine:
        return "long"
    if objective == "sft" or first % len(schemes()) == second:
        return ""
    return "slow" if (first + second) % 3 == 1 else "long"


def cell(objective: str, scheme: str, machine: str) -> Any:
    where = suite(objective, scheme, machine)
    marks = [getattr(pytest.mark, where)] if where else []
    name = f"{objective}-{scheme}-{machine.replace(' ', '-')}"
    return pytest.param(objective, scheme, machine, marks=marks, id=name)


CELLS = [cell(*names) for names in product(OBJECTIVES, schemes(), MACHINES)]


@pytest.mark.parametrize(("objective", "scheme", "machine"), CELLS)
def test_a_plan_for_a_gpu_trains_in_its_dtypes(
    objective: str, scheme: str, machine: str, folder: Path, tmp_path: Path, watch: Any
) -> None:
    """Two steps and an evaluation of what a plan says run without a fault of dtype or device; all
    that is trained is float32 unless the plan says pure, and states have the dtype of the estimate.
    """
    seen, models = watch
    stage = made_small(planned(objective, scheme, machine))
    data = objective if objective in ("sft", "cpt", CLASSES) else "pairs"
    plan = Plan(
        name="test",
        model=str(folder / "model"),
        data=PlanData(path=str(folder / f"{data}.jsonl")),
        stages=(stage,),
        launch=Launch(device="cuda"),
    )
    job = make_job(plan, stage=stage.name, run=tmp_path / "run", folder=folder, dry_run=True)
    # The scale that float16 begins with makes the first steps overflow, and skips them.
    device, _, *rest = torch.amp.GradScaler.__init__.__defaults__
    scale = mock.patch.object(
        torch.amp.GradScaler.__init__, "__defaults__", (device, 2.0**8, *rest)
    )
    with scale, pretend_gpu(capability=MACHINES[machine][1]):
        import_module(f"trainers.{stage.objective}").train(job)
    assert seen.steps >= 2 or (seen.steps >= 1 and stage.weights_dtype == "float16")
    assert not seen.faults
    for model in models:  # PPO has no trainer, and its optimizer is given every part that trains
        trained = {id(one) for one in model.parameters() if one.requires_grad}
        assert trained == set(seen.parameters)
    sizes: dict[torch.dtype, int] = {}
    for parameter in seen.parameters.values():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    # Under pure the base trains in the dtype it is loaded in; PPO's new value head stays float32.
    wanted = getattr(torch, stage.weights_dtype) if stage.precision == "pure" else torch.float32
    assert max(sizes, key=lambda dtype: sizes[dtype]) == wanted
    assert set(sizes) <= {wanted, torch.float32}
    check_states(stage, seen, wanted)


def check_states(stage: Stage, seen: Seen, trained: torch.dtype) -> None:
    """The optimizer's states and the trained weights are as wide as the estimator says."""
    shape, _ = model_shape(MODEL)
    expected = Run(stage=stage, model=shape)
    assert trained.itemsize == expected.train_bytes
    wide = {dtype for dtype in seen.state_dtypes if dtype.itemsize > 1}
    if "8bit" in stage.optimizer:
        large = any(one.numel() >= LEAST_8BIT for one in seen.parameters.values())
        assert (torch.uint8 in seen.state_dtypes) == large
        assert wide <= {torch.float32}
    else:
        assert wide <= {trained, torch.float32}
        assert trained in wide
