"""The method as PEFT sees it: puts adapters into their places, and is made known to PEFT."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner

from advisor.peft_adapter.config import CANNOT_BE_MERGED, PEFT_TYPE, BottleneckConfig
from advisor.peft_adapter.layer import BottleneckLayer
from advisor.peft_adapter.placement import Place, UnsupportedModel, base_shape, find_places


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """A model with bottleneck adapters in it."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (PEFT's own attribute)

    def _prepare_adapter_config(
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        """The config as it is: places are found in the model, not by its architecture's name."""
        return peft_config

    def _prepare_model(self, peft_config: BottleneckConfig, model: Any) -> None:
        """Find the places. Raises UnsupportedModel where the model has none, or is another one than
        the adapter was made for.
        """
        shape = base_shape(model)
        made_for = (peft_config.base_hidden_size, peft_config.base_layers)
        if made_for != (None, None) and made_for != (shape.hidden_size, shape.layers):
            raise UnsupportedModel(
                f"this adapter was made for a base with hidden size {made_for[0]} and {made_for[1]}"
                f" layers, and {type(model).__name__} has hidden size {shape.hidden_size} and"
                f" {shape.layers} layers: it belongs to another base"
            )
        self._places: dict[str, Place] = find_places(
            model, peft_config.placement, peft_config.layers
        )
        peft_config.base_hidden_size, peft_config.base_layers = shape.hidden_size, shape.layers

    def _check_target_module_exists(self, peft_config: BottleneckConfig, key: str) -> bool:  # type: ignore[override, unused-ignore]
        return key in self._places

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        hidden_size = peft_config.base_hidden_size or base_shape(self.model).hidden_size
        layer = (
            target if isinstance(target, BottleneckLayer) else BottleneckLayer(target, adapter_name)
        )
        layer.update_layer(adapter_name, peft_config, self._places[current_key], hidden_size)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        # PEFT's own copies weights between linear layers; here whole modules are wrapped, and
        # adapters are on their device already.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ValueError(CANNOT_BE_MERGED)


def register() -> None:
    """Tell PEFT of the method; once, also where this is imported again.

    Raises ImportError where PEFT has taken the name.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method
    from peft.utils.peft_types import PeftType

    if PEFT_TYPE in PeftType.__members__:
        there = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[PEFT_TYPE])
        if there is not None and there.__module__ == BottleneckConfig.__module__:
            return
        raise ImportError(
            f"this version of PEFT has a method called {PEFT_TYPE} of its own; install"
            " peft>=0.21,<0.22"
        )
    # The hook wants the name as a member of PeftType, and an Enum with members cannot be
    # subclassed.
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = PEFT_TYPE
    member._value_ = PEFT_TYPE
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = member
    PeftType._value2member_map_[PEFT_TYPE] = member
    type.__setattr__(PeftType, PEFT_TYPE, member)
    register_peft_method(
        name=PEFT_TYPE.lower(), config_cls=BottleneckConfig, model_cls=BottleneckModel
    )
