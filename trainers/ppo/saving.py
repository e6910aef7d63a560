"""Checkpoints of a PPO run: what is trained, its optimizer, the KL coefficient and all random
states, without pickle.
"""

from __future__ import annotations

from pathlib import Path

from trainers.job.machine import is_main_process, process_rank, wait_for_all
from trainers.job.random_states import random_states
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.checkpoints import (
    STATE,
    load_random_states,
    load_state,
    random_state_name,
    save_state,
)
from trainers.ppo.roles import POLICY, VALUE
from trainers.ppo.update import PPO
from trainers.step.optimizer_states import load_optimizer


def save_checkpoint(
    store: CheckpointStore, ppo: PPO, *, step: int, steps: int, epoch: float
) -> None:
    """Write the checkpoint of a step, and remove all but the last two.

    Call it in every process: each writes its own random states, the main one all else. Raises
    MachineNotReady if the disk does not take it.

    Args:
        store: The stage's checkpoints.
        ppo: What to save.
        step: The number of updates done.
        steps: Those of the whole run.
        epoch: Times through the prompts.
    """
    place = store.begin(step) if is_main_process() else store.unfinished(step)
    wait_for_all()
    with store.writing():
        save_state(place, random_state_name(process_rank()), random_states())
        if is_main_process():
            _save_trained(place, ppo)
    wait_for_all()
    if is_main_process():
        rate = float(ppo.optimizer.param_groups[0]["lr"])  # torchao keeps a tensor
        store.complete(step, {"steps": steps, "learning_rate": rate, "epoch": epoch})


def _save_trained(place: Path, ppo: PPO) -> None:
    weights = {
        role: {name: parameter.detach() for name, parameter in ppo.roles.trained(role).items()}
        for role in (POLICY, VALUE)
    }
    save_state(place, "weights", weights)
    value = {
        "optimizer": ppo.optimizer.state_dict(),
        "scaler": ppo.scaler.state_dict() if ppo.scaler is not None else None,
        "kl_coef": ppo.kl_coefficient.value,
    }
    save_state(place, STATE, value)


def load_checkpoint(place: Path, ppo: PPO, *, seed: int) -> None:
    """Put everything back as it was when the checkpoint was written.

    Args:
        place: The checkpoint.
        ppo: What is trained.
        seed: The stage's, for random numbers if another number of processes wrote it.
    """
    import torch

    weights, value = load_state(place, "weights"), load_state(place, STATE)
    with torch.no_grad():
        for role in (POLICY, VALUE):
            for name, parameter in ppo.roles.trained(role).items():
                parameter.copy_(weights[role][name])
    load_optimizer(ppo.optimizer, value["optimizer"])
    if ppo.scaler is not None and value["scaler"] is not None:
        ppo.scaler.load_state_dict(value["scaler"])
    ppo.kl_coefficient.value = value["kl_coef"]
    load_random_states(place, process_rank(), seed=seed)
