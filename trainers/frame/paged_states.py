"""Optimizer states loaded from a checkpoint, in memory that may be moved to the host again.

bitsandbytes makes the states of a paged optimizer in managed memory, but `load_state_dict` puts
plain tensors of the GPU in their place: a resumed run would need memory that its first part did
not.
"""

from __future__ import annotations

from typing import Any

STATES = ("state1", "state2")  # what bitsandbytes pages


def load_optimizer(optimizer: Any, value: dict[str, Any]) -> None:
    """Load an optimizer's state; that of a paged one into paged memory.

    Args:
        optimizer: Of torch or bitsandbytes, or accelerate's wrapper of one.
        value: What its `state_dict` returned.
    """
    plain = getattr(optimizer, "optimizer", optimizer)
    if not getattr(plain, "is_paged", False):
        optimizer.load_state_dict(value)
        return
    # Onto the GPU one by one, below: all of them at once may not fit there.
    plain.load_state_dict(value, move_to_device=False)
    for group in plain.param_groups:
        for parameter in group["params"]:
            state = plain.state.get(parameter, {})
            for name, loaded in list(state.items()):
                if not hasattr(loaded, "device"):
                    continue
                if name in STATES:
                    # Small ones are not paged; bitsandbytes decides by the parameter's size.
                    state[name] = plain.get_state_buffer(parameter, dtype=loaded.dtype)
                    state[name].copy_(loaded)
                else:
                    state[name] = loaded.to(parameter.device)
