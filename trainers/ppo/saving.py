"""Checkpoints of a PPO run: what is trained, its optimizer, the KL coefficient and all random
states, without pickle.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trainers.frame.checkpoints import (
    STATE,
    load_random_state,
    load_state,
    mark_complete,
    random_state_name,
    random_states,
    restore_random_states,
    save_state,
)
from trainers.frame.machine import is_main_process, process_rank, wait_for_all
from trainers.frame.paged_states import load_optimizer
from trainers.ppo.roles import POLICY, VALUE
from trainers.ppo.update import PPO

KEPT = 2


def save_checkpoint(
    folder: Path, ppo: PPO, *, step: int, steps: int, fingerprint: str, epoch: float
) -> None:
    """Write checkpoint-STEP, mark it as complete, and remove all but the last two.

    Call it in every process: each writes its own random states, the main one all else.

    Args:
        folder: For all checkpoints of the stage.
        ppo: What to save.
        step: The number of updates done.
        steps: Those of the whole run.
        fingerprint: Of everything that the checkpoint depends on.
        epoch: Times through the prompts.
    """
    place = folder / f"checkpoint-{step}"
    if is_main_process():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    wait_for_all()
    save_state(place, random_state_name(process_rank()), random_states())
    if is_main_process():
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
    wait_for_all()
    if not is_main_process():
        return
    mark_complete(
        place,
        step=step,
        steps=steps,
        learning_rate=ppo.optimizer.param_groups[0]["lr"],
        epoch=epoch,
        fingerprint=fingerprint,
    )
    numbered = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    for old in numbered[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(place: Path, ppo: PPO) -> None:
    """Put everything back as it was when the checkpoint was written."""
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
    # Checkpoints of earlier versions hold those of the main process beside the rest.
    own = value["random"] if "random" in value else load_random_state(place, process_rank())
    restore_random_states(own)
