"""One place of a model with its adapters: the wrapped module, and a bottleneck for each adapter's
name.

Shapes: B rows, T tokens, H hidden size, D bottleneck.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from advisor.peft_adapter.config import BottleneckConfig
from advisor.peft_adapter.placement import INPUT, OUTPUT, RESIDUAL, Place

ACTIVATION = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A module of the base with its adapters.

    Several active ones add up, each as if it were alone.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_settings")

    def __init__(self, base_layer: Any, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_settings: dict[str, tuple[Place, str, float]] = {}
        self._arguments = list(inspect.signature(base_layer.forward).parameters)
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """What the wrapped module has: other code of the model asks it for its settings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def update_layer(
        self, adapter_name: str, config: BottleneckConfig, place: Place, hidden_size: int
    ) -> None:
        """Add an adapter that changes nothing yet: its up-projection is zero."""
        down = nn.Linear(hidden_size, config.bottleneck)
        up = nn.Linear(config.bottleneck, hidden_size)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_settings[adapter_name] = (place, config.activation, float(config.scale))
        self.bottleneck_dropout[adapter_name] = (
            nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        )
        if down.weight.device.type != "meta":  # PEFT fills those in from the file
            device, dtype = self._of_base()
            down, up = down.to(device, dtype), up.to(device, dtype)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _of_base(self) -> tuple[Any, Any]:
        base = self.get_base_layer()
        named = (getattr(module, "compute_dtype", None) for module in base.modules())
        computed = next(filter(None, named), None)
        floats = [parameter for parameter in base.parameters() if parameter.is_floating_point()]
        device = next(base.parameters()).device
        return device, computed or (floats[0].dtype if floats else torch.float32)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns, its hidden states changed by the active adapters."""
        names = [name for name in self.active_adapters if name in self.bottleneck_down]
        if not names or self.disable_adapters:
            return self.base_layer(*args, **kwargs)
        for name in names:
            place = self.bottleneck_settings[name][0]
            if place.reads == RESIDUAL:
                args, kwargs = self._with(
                    place.argument or "",
                    lambda residual_BTH, name=name: residual_BTH + self._change(name, residual_BTH),
                    args,
                    kwargs,
                )
        output = self.base_layer(*args, **kwargs)
        hidden_BTH = before_BTH = output[0] if isinstance(output, tuple) else output
        for name in names:
            reads = self.bottleneck_settings[name][0].reads
            if reads == OUTPUT:
                hidden_BTH = hidden_BTH + self._change(name, before_BTH)
            elif reads == INPUT:
                read_BTH = args[0] if args else kwargs[self._arguments[0]]
                hidden_BTH = hidden_BTH + self._change(name, read_BTH)
        return (hidden_BTH, *output[1:]) if isinstance(output, tuple) else hidden_BTH

    def _with(
        self, argument: str, change: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if argument in kwargs:
            return args, {**kwargs, argument: change(kwargs[argument])}
        at = self._arguments.index(argument)
        return (*args[:at], change(args[at]), *args[at + 1 :]), kwargs

    def _change(self, name: str, x_BTH: Any) -> Any:
        _, activation, scale = self.bottleneck_settings[name]
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        dropped_BTH = self.bottleneck_dropout[name](x_BTH.to(down.weight.dtype))
        inner_BTD = ACTIVATION[activation](down(dropped_BTH))
        changed_BTH = up(inner_BTD) if scale == 1 else scale * up(inner_BTD)
        return changed_BTH.to(x_BTH.dtype)

    def unmerge(self) -> None:
        """Nothing: it is never merged."""
