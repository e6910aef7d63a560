"""The settings of a bottleneck adapter, as PEFT stores them in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from peft.config import PeftConfig

PEFT_TYPE = "BOTTLENECK"
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
NOT_SERVED_BY = ("vllm", "ollama", "llama.cpp", "tgi", "sglang")
CANNOT_BE_MERGED = (
    "a bottleneck adapter cannot be merged: there is an activation between its two matrices, so no"
    " weight of the base can take its place; keep it beside its base, and load both with PEFT after"
    " `import advisor.peft_adapter`"
)
CANNOT_BE_SERVED = (
    "vLLM, Ollama, llama.cpp, TGI and SGLang cannot load a bottleneck adapter: serve it with"
    " transformers and PEFT, or train a LoRA instead"
)


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """The settings of a bottleneck adapter.

    An adapter is A(x) = scale · (W_up f(W_down x + b_down) + b_up), of width `bottleneck`. W_up and
    b_up start at zero, so a new adapter changes nothing.

    - `houlsby`: h + A(h) on the output h of attention and of the MLP, each before its residual is
      added (Houlsby et al. 2019, section 2.1, arXiv:1902.00751).
    - `pfeiffer`: the second of these alone (Pfeiffer et al. 2020, arXiv:2005.00247), as
      LLM-Adapters places it in decoders (Hu et al. 2023, arXiv:2304.01933).
    - `parallel`: A(x) of the MLP's input x, added to its output (He et al. 2022, section 3.3,
      arXiv:2110.04366).

    Args:
        placement: houlsby, pfeiffer or parallel.
        bottleneck: Width of the adapter.
        activation: f: relu, gelu, silu or tanh.
        dropout: Dropout on the adapter's input, while training.
        scale: Factor of the adapter's output; He et al. use 4 for parallel adapters of some tasks.
        layers: Numbers of the layers that get an adapter, from 0; None: all.
        modules_to_save: Other modules that are trained and saved whole, such as a classification
            head.
        base_hidden_size: Filled in: what the adapter was made for, so that another base is refused
            by name.
        base_layers: Filled in.
    """

    placement: str = "pfeiffer"
    bottleneck: int = 64
    activation: str = "relu"
    dropout: float = 0.0
    scale: float = 1.0
    layers: list[int] | None = None
    modules_to_save: list[str] | None = None
    base_hidden_size: int | None = None
    base_layers: int | None = None
    # Read by PEFT from every config. Places are found in the model instead.
    target_modules: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError with every fault."""
        from peft.utils.peft_types import PeftType

        super().__post_init__()
        self.peft_type = PeftType[PEFT_TYPE]
        faults = [*self._faults()]
        if faults:
            raise ValueError("; ".join(faults))

    def _faults(self) -> list[str]:
        found = []
        if self.placement not in PLACEMENTS:
            found.append(f"placement is {self.placement!r}, allowed are {', '.join(PLACEMENTS)}")
        if self.activation not in ACTIVATIONS:
            found.append(f"activation is {self.activation!r}, allowed are {', '.join(ACTIVATIONS)}")
        if not _whole(self.bottleneck) or self.bottleneck < 1:
            found.append(f"bottleneck is {self.bottleneck!r}, allowed is a whole number from 1")
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout!r}, allowed is a number from 0 and below 1")
        if not _number(self.scale) or self.scale == 0:
            found.append(f"scale is {self.scale!r}, allowed is a number other than 0")
        if self.layers is not None and not (
            isinstance(self.layers, list | tuple)
            and self.layers
            and all(_whole(number) and number >= 0 for number in self.layers)
        ):
            found.append(
                f"layers is {self.layers!r}, allowed is a list of layer numbers from 0, or nothing"
                " for all layers"
            )
        return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
