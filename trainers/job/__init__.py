"""The job of a stage: the plan's values, this machine, files that others may read. Here stand the
libraries' own types, for readers and editors: a checker that does not import torch takes all of
them for `Any`.

Tensors are `Any`: the dimensions at the end of their names say what they are (logits_BTV), with a
legend at the top of each file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import peft
    import torch
    import transformers

Device: TypeAlias = "torch.device"
Tokenizer: TypeAlias = "transformers.PreTrainedTokenizerFast"
Model: TypeAlias = "transformers.PreTrainedModel"  # plain or under PEFT's wrapping
AdaptedModel: TypeAlias = "peft.PeftModel"
# Of transformers or TRL, with what `trainers.stage.trl_trainer` adds to it.
Trainer: TypeAlias = "transformers.Trainer"
