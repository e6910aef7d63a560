"""The plan's optimizer, built: over a model with the groups of transformers' Trainer, or over
groups of one's own.

transformers' Trainer makes some of them itself, from the name that `settings` gives it; all others
are put on it here. PPO, which has no Trainer, has all of them made here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods.optimizers import ALL_LINEAR, Optimizer, optimizer, read_arguments
from advisor.plan.model import Stage
from trainers.job.machine import process_count
from trainers.job.types import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an optimizer is made of, beside its parameters."""

    stage: Stage
    entry: Optimizer
    models: Sequence[Model]  # whose parameters the groups hold
    steps: int  # of the whole stage
    betas: tuple[float, ...]
    eps: float
    arguments: Mapping[str, Any]

    @property
    def adam(self) -> dict[str, Any]:
        """The arguments of every Adam."""
        return {"betas": self.betas, "eps": self.eps}


Groups = list[dict[str, Any]]
Make = Callable[[Groups, Wanted], Any]


def by_transformers(entry: Optimizer) -> bool:
    """Whether transformers' Trainer makes it as it should be."""
    usual = entry.library is None or entry.library.name == "bitsandbytes"
    return entry.transformers is not None and usual


def put_own(trainer: Any, stage: Stage, *, steps: int) -> None:
    """Let transformers' trainer step with the plan's optimizer where it does not make it itself."""
    if by_transformers(optimizer(stage.optimizer)):
        return
    given = trainer.args

    def make(model: Model) -> Any:
        return model_optimizer(
            stage, model, steps=steps, betas=(given.adam_beta1, given.adam_beta2),
            eps=given.adam_epsilon, decayed=trainer.get_decay_parameter_names(model),
        )  # fmt: skip

    trainer.optimizer_cls_and_kwargs = (lambda: make, {})


def model_optimizer(
    stage: Stage,
    model: Model,
    *,
    steps: int,
    betas: tuple[float, float] | None = None,
    eps: float = 1e-8,
    decayed: Sequence[str] = (),
) -> Any:
    """The stage's optimizer over what trains of a model.

    Args:
        stage: Names it, its learning rate and weight decay.
        model: The model.
        steps: Of the whole stage.
        betas: Of Adam; None: the optimizer's own.
        eps: Of Adam.
        decayed: The names of the parameters that weight decay pulls: no norms and biases.
    """
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    kept = set(decayed)
    groups = [
        {
            "params": [one for name, one in trained if (name in kept) == pulled],
            "lr": stage.learning_rate,
            "weight_decay": stage.weight_decay if pulled else 0.0,
        }
        for pulled in (True, False)
    ]
    return make(stage, groups, [model], steps=steps, betas=betas, eps=eps)


def make(
    stage: Stage,
    groups: Groups,
    models: Sequence[Model],
    *,
    steps: int,
    betas: tuple[float, float] | None = None,
    eps: float = 1e-8,
) -> Any:
    """The stage's optimizer over groups of parameters, each with its lr and weight_decay.

    Arguments as of `model_optimizer`; `models` hold the parameters.
    """
    entry = optimizer(stage.optimizer)
    wanted = Wanted(
        stage=stage, entry=entry, models=models, steps=steps,
        betas=betas or entry.betas or (0.9, 0.999), eps=eps,
        arguments=read_arguments(entry.name, stage.trl.get("optim_args")),
    )  # fmt: skip
    filled = [group for group in groups if group["params"]]
    own = MAKERS.get(entry.name)
    if own is not None:
        return own(filled, wanted)
    assert entry.library is not None
    return OF_LIBRARY[entry.library.name](filled, wanted)


# --------------------------------------------------------------------------- torch, transformers


def _adamw(groups: Groups, wanted: Wanted) -> Any:
    import torch

    fused = wanted.entry.name == "adamw_fused"
    return torch.optim.AdamW(groups, fused=fused, **wanted.adam)


def _bfloat16_adamw(groups: Groups, wanted: Wanted) -> Any:
    from trainers.step.bf16_adamw import BFloat16AdamW

    keeps: Any = wanted.entry.name.removeprefix("adamw_")
    return BFloat16AdamW(groups, keeps=keeps, seed=wanted.stage.seed, **wanted.adam)


def _adafactor(groups: Groups, wanted: Wanted) -> Any:
    from transformers import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False)


def _of_torch(groups: Groups, wanted: Wanted) -> Any:
    import torch

    kind = {"sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}[wanted.entry.name]
    return getattr(torch.optim, kind)(groups, lr=wanted.stage.learning_rate, **wanted.arguments)


def _muon(groups: Groups, wanted: Wanted) -> Any:
    from trainers.step.muon import MuonWithAdamW

    matrices = {id(one) for one in hidden_matrices(wanted.models)}
    parts = list(_divided(groups, matrices, {"muon": True}))
    return MuonWithAdamW(parts, **wanted.adam, **wanted.arguments)


# --------------------------------------------------------------------------- other libraries


def _library(wanted: Wanted) -> Any:
    """The module that has the optimizer."""
    assert wanted.entry.library is not None
    return importlib.import_module(wanted.entry.library.module)


def _bitsandbytes(groups: Groups, wanted: Wanted) -> Any:
    import bitsandbytes
    import torch

    name = wanted.entry.name
    kind = next(
        kind for word, kind in (("adamw", "AdamW"), ("lion", "Lion"), ("ademamix", "AdEMAMix"))
        if word in name
    )  # fmt: skip
    keys: dict[str, Any] = {"lr": wanted.stage.learning_rate, "betas": wanted.betas}
    if kind != "Lion":
        keys["eps"] = wanted.eps
    if kind == "AdEMAMix":
        keys["betas"] = (*wanted.betas, wanted.arguments["beta3"])
        keys["alpha"] = wanted.arguments["alpha"]
    narrow = "8bit" in name
    made = getattr(bitsandbytes.optim, kind)(
        groups, optim_bits=8 if narrow else 32, is_paged=wanted.entry.is_paged, **keys
    )
    if narrow:  # as transformers' Trainer does
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for model in wanted.models:
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):
                    manager.register_module_override(module, "weight", {"optim_bits": 32})
    return made


def _torchao(groups: Groups, wanted: Wanted) -> Any:
    kind = "AdamW4bit" if "4bit" in wanted.entry.name else "AdamW8bit"
    return getattr(_library(wanted), kind)(
        groups, lr=wanted.stage.learning_rate,
        # Every process would round to other weights.
        bf16_stochastic_round=process_count() == 1, **wanted.adam, **wanted.arguments,
    )  # fmt: skip


def _galore(groups: Groups, wanted: Wanted) -> Any:
    parts = _low_rank(groups, wanted)
    if "8bit" in wanted.entry.name:
        return _compact(_library(wanted).GaLoreAdamW8bit(parts, **wanted.adam))
    return _compact(_library(wanted).GaLoreAdamW(parts, no_deprecation_warning=True, **wanted.adam))


def _apollo(groups: Groups, wanted: Wanted) -> Any:
    return _compact(_library(wanted).APOLLOAdamW(_low_rank(groups, wanted), **wanted.adam))


def _compact(made: Any) -> Any:
    """The optimizer, whose projections are stored alone and in order after each step.

    galore-torch 1.0 keeps a view of all singular vectors: as much memory as the weight, and a
    product that rounds otherwise than with the same numbers from a checkpoint.
    """

    def compact(optimizer_: Any, *_: Any) -> None:
        for state in optimizer_.state.values():
            projector = state.get("projector")
            matrix = getattr(projector, "ortho_matrix", None)
            if matrix is None:
                continue
            if not matrix.is_contiguous() or matrix.untyped_storage().nbytes() > matrix.nbytes:
                projector.ortho_matrix = matrix.clone(memory_format=torch.contiguous_format)

    import torch

    made.register_step_post_hook(compact)
    return made


def _schedule_free(groups: Groups, wanted: Wanted) -> Any:
    warm = math.ceil(wanted.stage.warmup * wanted.steps)
    return _library(wanted).AdamWScheduleFree(
        groups, lr=wanted.stage.learning_rate, warmup_steps=warm, **wanted.adam, **wanted.arguments
    )


def _stable(groups: Groups, wanted: Wanted) -> Any:
    return _library(wanted).StableAdamW(groups, lr=wanted.stage.learning_rate, **wanted.adam)


MAKERS: Mapping[str, Make] = {
    "adamw": _adamw, "adamw_fused": _adamw, "adamw_split": _bfloat16_adamw,
    "adamw_stochastic": _bfloat16_adamw, "adafactor": _adafactor, "sgd": _of_torch,
    "rmsprop": _of_torch, "adagrad": _of_torch, "muon": _muon,
}  # fmt: skip
OF_LIBRARY: Mapping[str, Make] = {
    "bitsandbytes": _bitsandbytes, "torchao": _torchao, "galore-torch": _galore,
    "apollo-torch": _apollo, "schedulefree": _schedule_free, "torch-optimi": _stable,
}  # fmt: skip


# --------------------------------------------------------------------------- chosen matrices


def _low_rank(groups: Groups, wanted: Wanted) -> Groups:
    """The groups, with the matrices whose gradients are projected in groups of their own."""
    targets = wanted.stage.trl.get("optim_target_modules") or ALL_LINEAR
    chosen = {id(one) for one in target_matrices(wanted.models, targets)}
    if not chosen:
        raise InputError(
            f"'optim_target_modules': {targets!r} names no linear"
            " layer of the model whose weights train",
            where=f"stage {wanted.stage.name}: trl",
            allowed="names of linear layers, such as [q_proj, v_proj], or all-linear",
        )
    return list(_divided(groups, chosen, wanted.arguments))


def _divided(groups: Groups, chosen: set[int], more: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each group as two: the chosen parameters with more keys, and the others."""
    for group in groups:
        inside = [one for one in group["params"] if id(one) in chosen]
        outside = [one for one in group["params"] if id(one) not in chosen]
        if inside:
            yield {**group, "params": inside, **more}
        if outside:
            yield {**group, "params": outside}


def hidden_matrices(models: Sequence[Model]) -> list[Any]:
    """The trained matrices, and stacks of an expert's matrices each, that are neither embeddings
    nor what makes the output.
    """
    import torch

    found = []
    for model in models:
        apart = {id(one) for one in _ends(model)}
        for module in model.modules():
            embeds = isinstance(module, torch.nn.Embedding)
            for one in module.parameters(recurse=False):
                if one.requires_grad and one.ndim in (2, 3) and not embeds and id(one) not in apart:
                    found.append(one)
    return found


def target_matrices(models: Sequence[Model], targets: str | Sequence[str]) -> list[Any]:
    """The trained weights of linear layers that the targets name, as transformers matches them; the
    output matrix is none of `all-linear`.
    """
    import torch
    from transformers.trainer_utils import check_target_module_exists

    found = []
    whole = isinstance(targets, str) and targets.replace("_", "-") == ALL_LINEAR
    for model in models:
        apart = {id(one) for one in _ends(model)} if whole else set()
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or id(module.weight) in apart:
                continue
            if module.weight.requires_grad and (whole or check_target_module_exists(targets, name)):
                found.append(module.weight)
    return found


def _ends(model: Model) -> Iterator[Any]:
    """The parameters of a model's embeddings and of what makes its output: words, classes or a
    score.
    """
    get_input = getattr(model, "get_input_embeddings", None)
    get_output = getattr(model, "get_output_embeddings", None)
    for module in (get_input and get_input(), get_output and get_output()):
        if module is not None:
            yield from module.parameters()
    for name in ("score", "classifier", "lm_head"):
        module = getattr(model, name, None)
        if module is not None:
            yield from module.parameters()
