"""Checkpoints of a PPO run: what is trained, its optimizer, the KL coefficient and all random
states, without pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.job.machine import is_main_process, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.checkpoints import load_random_states, load_training, save_training
from trainers.ppo.roles import POLICY, VALUE
from trainers.ppo.update import PPO


def save_checkpoint(
    store: CheckpointStore, ppo: PPO, *, step: int, steps: int, epoch: float
) -> None:
    """Write the checkpoint of a step, and remove all but the last two.

    Call it in every process. Raises MachineNotReady if the disk does not take it.

    Args:
        store: The stage's checkpoints.
        ppo: What to save.
        step: The number of updates done.
        steps: Those of the whole run.
        epoch: Times through the prompts.
    """
    if is_main_process():
        store.begin(step)
    wait_for_all()
    with store.writing(step):
        save_training(
            store.place(step), _trained(ppo), ppo.optimizer, weights=True,
            scaler=ppo.scaler.state_dict() if ppo.scaler is not None else None,
            kl_coef=ppo.kl_coefficient.value,
        )  # fmt: skip
    wait_for_all()
    if is_main_process():
        rate = float(ppo.optimizer.param_groups[0]["lr"])
        store.complete(step, {"steps": steps, "learning_rate": rate, "epoch": epoch})


def load_checkpoint(place: Path, ppo: PPO, *, seed: int) -> None:
    """Put everything back as it was when the checkpoint was written.

    Args:
        place: The checkpoint.
        ppo: What is trained.
        seed: The stage's, for random numbers if another number of processes wrote it.
    """
    more = load_training(place, _trained(ppo), ppo.optimizer)
    if ppo.scaler is not None and more["scaler"] is not None:
        ppo.scaler.load_state_dict(more["scaler"])
    ppo.kl_coefficient.value = more["kl_coef"]
    load_random_states(place, seed=seed)


def _trained(ppo: PPO) -> dict[str, Any]:
    """Name -> parameter, of all that are trained; once each, however many roles have it."""
    found = {}
    for role in (POLICY, VALUE):
        for name, parameter in ppo.roles.trained(role).items():
            found[f"{role}.{name}"] = parameter
    return found
