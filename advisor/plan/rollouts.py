"""What a stage with `rollouts: vllm` needs of its server; read by the launcher, which may start it,
and by the trainer, which asks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advisor.ground.errors import Fault
from advisor.methods import update
from advisor.plan.model import Plan, Stage
from advisor.plan.vllm import DEFAULT_URL, ServerNeeds

URL_VARIABLE = "ADVISE_VLLM_URL"  # tells a trainer where `advise run` has started the server
# Of `peft:`, what makes a LoRA something else than W + BA, or more than a server loads.
NOT_PLAIN = (
    "use_dora", "bias", "lora_bias", "modules_to_save", "target_parameters", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens", "velora_config",
)  # fmt: skip
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


def asks_server(stage: Stage) -> bool:
    """Whether a vLLM server generates the stage's answers."""
    return stage.options.get("rollouts") == "vllm"


def server_url(plan: Plan, environ: Mapping[str, str]) -> str:
    """Where the server of the plan is."""
    server = plan.launch.vllm
    named = server.url if server is not None else None
    return named or environ.get(URL_VARIABLE) or DEFAULT_URL


def server_needs(stage: Stage, options: Mapping[str, Any], *, model: str) -> ServerNeeds:
    """What the stage needs of a server of a whole model; `options` are its keys with defaults."""
    rank = None
    if update(stage.update).is_module:
        pattern = stage.peft.get("rank_pattern")
        rank = max([int(options["rank"]), *(pattern.values() if isinstance(pattern, dict) else ())])
    drawn = {**{key: options[key] for key in NEUTRAL if key in options}, **stage.trl}
    return ServerNeeds(
        model=model,
        tokens=stage.seq_len,
        lora_rank=rank,
        processed=any(drawn.get(key, usual) != usual for key, usual in NEUTRAL.items()),
    )


def unservable(stage: Stage, options: Mapping[str, Any]) -> Iterator[Fault]:
    """What in the stage a running vLLM server cannot take over."""
    at = f"stage {stage.name}: rollouts is vllm, and"

    def fault(why: str, key: str = "it") -> Fault:
        hint = f"remove {key}, or train with rollouts: transformers"
        return Fault(where=at, what=f"{at} {why}", hint=hint)

    for key in NOT_PLAIN:
        if stage.peft.get(key) not in (None, False, [], "none"):
            yield fault(f"peft: {key} makes the module more than a server loads, a plain LoRA", key)
    start = stage.peft.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq")):
        base = "begins with a part of the base, which the server would count twice"
        yield fault(f"init_lora_weights {start} {base}")
    if options.get("train_embeddings"):
        yield fault("train_embeddings trains matrices that a server does not load")
