"""What a process holds while it trains: bytes of its tensors, and pages of memory."""

import ctypes
import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer

from trainers.job.machine import process_count


@contextmanager
def held() -> Iterator[dict[str, int]]:
    """What a process holds: tensors after the first micro-batch, states before the last, pages."""
    plain, pages, found = Trainer.training_step, Pages(), {}
    load = PreTrainedModel.__dict__["from_pretrained"]

    def loading(kind: Any, *given: Any, **named: Any) -> Any:
        loaded = load.__func__(kind, *given, **named)
        found["loaded"] = stored(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def step(trainer: Any, model: Any, *given: Any, **named: Any) -> Any:
        found.update(pages.stop())
        states = trainer.optimizer.state.values() if trainer.optimizer else ()
        found["optimizer"] = size(value for state in states for value in state.values())
        loss = plain(trainer, model, *given, **named)
        if "weights" not in found:
            reference = getattr(trainer, "ref_model", None)
            found["weights"] = size(model.parameters())
            found["gradients"] = size(one.grad for one in model.parameters())
            found["whole gradients"] = size(whole_gradients(model))
            found["reference"] = size(reference.parameters() if reference is not None else ())
            found["reference units"] = len(units(reference))
        return loss

    Trainer.training_step = step
    PreTrainedModel.from_pretrained = classmethod(loading)
    pages.start()
    try:
        yield found
    finally:
        Trainer.training_step = plain
        PreTrainedModel.from_pretrained = load
        pages.stop()


def of_all(found: dict[str, int]) -> list[dict[str, int]]:
    """What each process found. Call it in all of them."""
    values: list[Any] = [found] * process_count()
    if process_count() > 1:
        torch.distributed.all_gather_object(values, found)
    return values


def size(tensors: Iterable[Any]) -> int:
    """Bytes of tensors that lie in this process: its parts of divided ones."""
    here = (one.to_local() if isinstance(one, DTensor) else one for one in tensors)
    kept = {id(one): one for one in here if isinstance(one, torch.Tensor)}
    return sum(one.numel() * one.element_size() for one in kept.values())


def stored(model: Any) -> int:
    """Bytes of memory behind a model's tensors, with what its 4-bit weights keep beside them."""
    found = {}
    for one in [*model.parameters(), *model.buffers()]:
        state = getattr(one, "quant_state", None)
        inner = state and state.state2
        beside = [state and state.absmax, inner and inner.absmax, getattr(one, "part", None)]
        for tensor in (one, *beside):
            if tensor is not None:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def units(model: Any) -> list[FSDPModule]:
    """The parts of a model that are put together one after the other."""
    modules = model.modules() if model is not None else ()
    return [one for one in modules if isinstance(one, FSDPModule)]


def whole_gradients(model: Any) -> list[Any]:
    """Gradients that FSDP has not divided yet."""
    groups = [group for unit in units(model) for group in unit._get_fsdp_state()._fsdp_param_groups]
    return [
        gradient
        for group in groups
        for one in group.fsdp_params
        for gradient in (one.unsharded_accumulated_grad, one.unsharded_param.grad)
    ]


class Pages:
    """Bytes of this process beyond those before: the most written and mapped; written at last."""

    def start(self) -> None:
        trim()
        self.before, self.most, self.over = pages(), {}, Event()
        self.watch = Thread(target=self._look, daemon=True)
        self.watch.start()

    def _look(self) -> None:
        while not self.over.wait(0.003):
            for name, value in pages().items():
                self.most[name] = max(self.most.get(name, 0), value - self.before[name])

    def stop(self) -> dict[str, int]:
        if not self.over.is_set():
            self.over.set()
            self.watch.join()
            trim()
            self.most["after"] = pages()["written"] - self.before["written"]
        return self.most


def trim() -> None:
    """Give back pages that were freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def pages() -> dict[str, int]:
    """Bytes of this process: `written` (anonymous: its alone), and `mapped` (pages of files)."""
    text = Path("/proc/self/status").read_text("ascii")
    found = {
        name: 1024 * int(kib) for name, kib in re.findall(r"^(Rss\w+):\s+(\d+) kB$", text, re.M)
    }
    return {"written": found["RssAnon"], "mapped": found["RssFile"]}
