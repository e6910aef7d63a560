"""Makes the method known to PEFT, through PEFT's own hook."""

from __future__ import annotations

from advisor.peft_adapter.config import PEFT_TYPE, BottleneckConfig
from advisor.peft_adapter.model import BottleneckModel


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
