"""The plan's optimizer, built over a model with the groups of transformers' Trainer or over groups
of one's own; and what to know of it.

transformers' Trainer makes most of them itself, from the name that `settings` gives it; the others
are put on it here. PPO, which has no Trainer, has all of them made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.methods import update
from advisor.methods.optimizers import Optimizer, optimizer, read_arguments
from advisor.plan.model import Stage
from trainers.job.types import Model

# The standard deviation of weights that the warning supposes: usual for models of 1B to 10B, and
# what most are initialised with.
USUAL_WEIGHT = 0.02
BFLOAT16_BITS = 8  # of a weight's size, the leading one among them
WORTH_SAYING = 0.1
WAYS_OUT = (
    "set optimizer: adamw_split (2 bytes a weight more) or adamw_stochastic (no more, with noise),"
    " or weights_dtype: float32 with precision: mixed"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an optimizer is made of, beside its parameters."""

    stage: Stage
    entry: Optimizer
    models: Sequence[Model]  # whose parameters the groups hold
    betas: tuple[float, ...]
    eps: float

    @property
    def adam(self) -> dict[str, Any]:
        """The arguments of every Adam."""
        return {"betas": self.betas, "eps": self.eps}

    @property
    def arguments(self) -> dict[str, Any]:
        """What `trl: {optim_args: ...}` sets, and defaults."""
        return read_arguments(self.entry.name, self.stage.trl.get("optim_args"))


Groups = list[dict[str, Any]]


def put_own(trainer: Any, stage: Stage) -> str | None:
    """Let transformers' trainer step with the plan's optimizer where it does not make it itself;
    what a person should know of it.
    """
    entry = optimizer(stage.optimizer)
    if entry.transformers is not None:
        return None
    given = trainer.args

    def make_own(model: Model) -> Any:
        return model_optimizer(
            stage, model, betas=(given.adam_beta1, given.adam_beta2), eps=given.adam_epsilon,
            decayed=trainer.get_decay_parameter_names(model),
        )  # fmt: skip

    trainer.optimizer_cls_and_kwargs = (lambda: make_own, {})
    stacks = [one for one in trainer.model.parameters() if one.requires_grad and one.ndim > 2]
    if entry.name != "muon" or not stacks:
        return None
    return (
        f"muon moves matrices: the weights of experts, {len(stacks)} tensors of three dimensions,"
        " are moved by AdamW"
    )


def model_optimizer(
    stage: Stage,
    model: Model,
    *,
    betas: tuple[float, float] | None = None,
    eps: float = 1e-8,
    decayed: Sequence[str] = (),
) -> Any:
    """The stage's optimizer over what trains of a model.

    Args:
        stage: Names it, its learning rate and weight decay.
        model: The model.
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
    return make(stage, groups, [model], betas=betas, eps=eps)


def make(
    stage: Stage,
    groups: Groups,
    models: Sequence[Model],
    *,
    betas: tuple[float, float] | None = None,
    eps: float = 1e-8,
) -> Any:
    """The stage's optimizer over groups of parameters, each with its lr and weight_decay.

    Arguments as of `model_optimizer`; `models` hold the parameters.
    """
    entry = optimizer(stage.optimizer)
    chosen = betas or entry.betas or (0.9, 0.999)
    wanted = Wanted(stage=stage, entry=entry, models=models, betas=chosen, eps=eps)
    return MAKERS[entry.name]([group for group in groups if group["params"]], wanted)


def _adamw(groups: Groups, wanted: Wanted) -> Any:
    import torch

    fused = wanted.entry.name == "adamw_fused"
    return torch.optim.AdamW(groups, fused=fused, **wanted.adam)


def _bfloat16_adamw(groups: Groups, wanted: Wanted) -> Any:
    from trainers.step.bf16_adamw import BFloat16AdamW

    keeps: Any = wanted.entry.name.removeprefix("adamw_")
    return BFloat16AdamW(groups, keeps=keeps, seed=wanted.stage.seed, **wanted.adam)


def _bitsandbytes(groups: Groups, wanted: Wanted) -> Any:
    import bitsandbytes
    import torch

    narrow = "8bit" in wanted.entry.name
    made = bitsandbytes.optim.AdamW(
        groups, lr=wanted.stage.learning_rate, optim_bits=8 if narrow else 32,
        is_paged=wanted.entry.is_paged, **wanted.adam,
    )  # fmt: skip
    if narrow:  # as transformers' Trainer does
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for model in wanted.models:
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):
                    manager.register_module_override(module, "weight", {"optim_bits": 32})
    return made


def _adafactor(groups: Groups, wanted: Wanted) -> Any:
    from transformers import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False)


def _sgd(groups: Groups, wanted: Wanted) -> Any:
    import torch

    return torch.optim.SGD(groups, lr=wanted.stage.learning_rate, **wanted.arguments)


def _muon(groups: Groups, wanted: Wanted) -> Any:
    from trainers.step.muon import MuonWithAdamW

    matrices = {id(one) for one in hidden_matrices(wanted.models)}
    parts = [
        {**group, "params": chosen, "muon": moved}
        for group in groups
        for moved in (True, False)
        if (chosen := [one for one in group["params"] if (id(one) in matrices) == moved])
    ]
    return MuonWithAdamW(parts, **wanted.adam, **wanted.arguments)


MAKERS: Mapping[str, Callable[[Groups, Wanted], Any]] = {
    "adamw": _adamw, "adamw_fused": _adamw, "adamw_split": _bfloat16_adamw,
    "adamw_stochastic": _bfloat16_adamw, "adamw_8bit": _bitsandbytes,
    "paged_adamw": _bitsandbytes, "paged_adamw_8bit": _bitsandbytes, "adafactor": _adafactor,
    "sgd": _sgd, "muon": _muon,
}  # fmt: skip


def hidden_matrices(models: Sequence[Model]) -> list[Any]:
    """The trained matrices that are neither embeddings nor what makes the output: words, classes or
    a score. A tensor that holds the matrices of several experts is none.
    """
    import torch

    found = []
    for model in models:
        ends = [getattr(model, name, None) for name in ("score", "classifier", "lm_head")]
        for name in ("get_input_embeddings", "get_output_embeddings"):
            ask = getattr(model, name, None)
            ends.append(ask and ask())
        apart = {id(one) for module in ends if module is not None for one in module.parameters()}
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                continue
            found += [
                one
                for one in module.parameters(recurse=False)
                if one.requires_grad and one.ndim == 2 and id(one) not in apart
            ]
    return found


# --------------------------------------------------------------------------- what to know of it


def rate_note(stage: Stage) -> str | None:
    """What to know of the learning rate under this optimizer; None where it is AdamW's."""
    why = optimizer(stage.optimizer).own_rate
    return f"learning rate {stage.learning_rate:g} under {stage.optimizer}: {why}" if why else None


def rounded_away(stage: Stage) -> float:
    """The share of normally distributed weights that a step of the full learning rate leaves as
    they are, because half the distance to the next bfloat16 number is more; 0 where weights are
    not in bfloat16 or the optimizer keeps small updates.

    AdamW moves a weight by about the learning rate (Kingma & Ba 2015, section 2.1), and so do the
    others.
    """
    if (
        stage.weights_dtype != "bfloat16"
        or update(stage.update).is_module
        or optimizer(stage.optimizer).keeps_small_updates
        or optimizer(stage.optimizer).name == "sgd"  # its steps have the size of the gradient
    ):
        return 0.0
    # Numbers of [2^k, 2^(k+1)) are 2^(k-7) apart: those below this power of two move.
    smallest_kept = 2.0 ** math.ceil(math.log2(stage.learning_rate) + BFLOAT16_BITS)
    return 1 - math.erf(smallest_kept / USUAL_WEIGHT / math.sqrt(2))


def rounding_warning(stage: Stage) -> str | None:
    """What to say of a stage that rounds many of its updates away; None if it does not."""
    share = rounded_away(stage)
    if share < WORTH_SAYING:
        return None
    return (
        f"bfloat16 weights with {stage.optimizer} at learning rate {stage.learning_rate:g}: steps"
        f" too small for about {share:.0%} of the weights are rounded away; {WAYS_OUT}"
    )
