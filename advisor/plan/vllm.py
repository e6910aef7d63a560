"""vLLM as a plan means it: where its server is, what a stage needs of one, and the lines that start
it. Weights travel as safetensors in a folder that both can read; nothing is pickled. vllm_client.py
asks the server.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from advisor.ground.errors import Fault
from advisor.methods import update
from advisor.plan.model import Plan, Stage

DEFAULT_URL = "http://127.0.0.1:8000"
# What the server needs to take new weights, and to count nobody's usage.
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as its largest


class ServerNeeds(Struct, frozen=True, kw_only=True):
    """What a stage needs of a server."""

    model: str  # hub id or folder of the base
    tokens: int  # of the longest prompt with its answer
    lora_rank: int | None  # None: whole weights are sent
    processed: bool  # whether sampling changes probabilities, by a temperature for example


def largest_rank(rank: int) -> int:
    """The smallest value of --max-lora-rank that holds the rank."""
    return next((size for size in RANKS if size >= rank), RANKS[-1])


def serve_arguments(needs: ServerNeeds) -> list[str]:
    """The arguments of `vllm serve` for a stage, without where it runs."""
    # Probabilities as tokens were drawn, which the correction of the loss needs.
    own = ("--max-model-len", str(needs.tokens), "--logprobs-mode", "processed_logprobs")
    rank = needs.lora_rank
    lora = () if rank is None else ("--max-loras", "1", "--max-lora-rank", str(largest_rank(rank)))
    return [needs.model, *own, *(("--enable-lora", *lora) if lora else ())]


def serve_line(needs: ServerNeeds) -> str:
    """The line for a shell that starts a server for a stage."""
    variable = "VLLM_SERVER_DEV_MODE=1"
    if needs.lora_rank is not None:
        variable += " VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    return f"{variable} vllm serve {' '.join(serve_arguments(needs))}"


def url_fault(url: str) -> str | None:
    """What is wrong with an address; None: nothing."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_address = is_address and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        is_address = False
    if not is_address:
        return "is no web address"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "holds more than host, port and path (a key goes into VLLM_API_KEY)"
    return None


def is_local(url: str) -> bool:
    """Whether an address means the machine itself, whoever uses it."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def folders_for_weights(url: str, run: Path) -> Sequence[Path]:
    """Where weights are handed over, the first that works: memory for a server on this machine,
    else the run folder, which another machine has to share.
    """
    memory = Path("/dev/shm")  # noqa: S108 (folders in it are made for this user alone)
    return ([memory] if is_local(url) and memory.is_dir() else []) + [run]


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
    """What in the stage a running vLLM server cannot take over; nothing if it asks none."""
    if not asks_server(stage):
        return
    at = f"stage {stage.name}: rollouts is vllm, and"

    def fault(why: str, key: str = "it") -> Fault:
        hint = f"remove {key}, or train with rollouts: transformers"
        return Fault(where=at, what=f"{at} {why}", hint=hint)

    for key in NOT_PLAIN:
        if stage.peft.get(key) not in (None, False, [], "none"):
            yield fault(f"peft: {key} makes the module more than a server loads, a plain LoRA", key)
    if options.get("train_embeddings"):
        yield fault("train_embeddings trains matrices that a server does not load")


class VllmServer(Struct, frozen=True, kw_only=True):
    """One server. Paths are written as they are given."""

    model: str  # a hub id or a folder
    modules: Sequence[tuple[str, str]] = ()  # (the name that requests ask for, folder)
    rank: int | None = None  # the largest of the modules; None: not known
    name: str | None = None  # what requests call a whole model; None: its path
    template: str | None = None  # a file; None: that of the model
    generation: str | None = None  # the folder of a generation_config.json; None: the model's
    more: Sequence[Sequence[str]] = ()  # further options

    def options(self) -> list[list[str]]:
        """The words behind `vllm serve MODEL`, one list an option."""
        several = str(len(self.modules)) if len(self.modules) > 1 else None
        # vLLM's own limit is 16, and it takes certain sizes alone.
        rank = str(largest_rank(self.rank)) if self.modules and self.rank is not None else None
        named = (
            ("--served-model-name", self.name),
            ("--enable-lora", "" if self.modules else None),
            ("--max-lora-rank", rank),
            ("--max-loras", several),
            ("--chat-template", self.template),
            ("--generation-config", self.generation),
        )
        options = [[name, value] if value else [name] for name, value in named if value is not None]
        options += [list(option) for option in self.more]
        modules = [f"{name}={folder}" for name, folder in self.modules]
        return [*options, ["--lora-modules", *modules]] if modules else options

    def line(self) -> str:
        """One line for a shell."""
        words = [word for option in self.options() for word in option]
        return shlex.join(["vllm", "serve", self.model, *words])
