"""A vLLM server that generates answers for a training run: how it is started, asked and checked.

The addresses are those of vLLM's own server (`vllm serve`, read in version 0.33):
`/v1/completions` with token ids, `/v1/load_lora_adapter`, and of its development mode
`/collective_rpc`, `/reset_prefix_cache` and `/server_info`. Weights travel as safetensors in a
folder that both can read; nothing is pickled. Only the address that the plan names is asked, past
every proxy, and a redirect is an error.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, field

from advisor.ground.errors import Fault
from advisor.methods import update
from advisor.plan.model import Plan, Stage

DEFAULT_URL = "http://127.0.0.1:8000"
OLDEST, READ = (0, 22), (0, 33)  # the oldest that TRL 1.16 supports; the one this was written for
ASK_S = 10.0  # for a question that needs no generation
MOST_BYTES = 2**30  # of an answer
LORA, WEIGHTS = "/v1/load_lora_adapter", "/collective_rpc"
# What the server needs to take new weights, and to count nobody's usage.
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as its largest


class ServerFault(Exception):
    """What a server did wrong, in words that follow 'the vLLM server at ...'."""


class ServerNeeds(Struct, frozen=True, kw_only=True):
    """What a stage needs of a server."""

    model: str  # hub id or folder of the base
    tokens: int  # of the longest prompt with its answer
    lora_rank: int | None  # None: whole weights are sent
    processed: bool  # whether sampling changes probabilities, by a temperature for example


class VLLMClient(Struct, frozen=True):
    """Asks one server."""

    url: str
    timeout_s: float = 600.0
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, timeout_s: float) -> VLLMClient:
        """With the key of VLLM_API_KEY, if the environment has one."""
        key = os.environ.get("VLLM_API_KEY")
        return cls(url, timeout_s, {"Authorization": f"Bearer {key}"} if key else {})

    def get(self, path: str) -> Any:
        """The answer to a question. Raises ServerFault."""
        return self._ask("GET", path, None, min(ASK_S, self.timeout_s))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request. Raises ServerFault."""
        return self._ask("POST", path, body, self.timeout_s)

    def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        parts = urlsplit(self.url)
        is_safe = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body, allow_nan=False).encode()
            headers = {"Content-Type": "application/json", **self.headers}
            connection.request(method, parts.path.rstrip("/") + path, data, headers)
            response = connection.getresponse()
            answer = response.read(MOST_BYTES)
        except TimeoutError:
            raise ServerFault(f"did not answer {path} within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerFault(f"does not answer ({why})") from None
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFault(f"refused {path}: {response.status} {message_of(answer)}")
        try:
            return json.loads(answer) if answer.strip() else {}
        except ValueError:
            if path == LORA or path.startswith("/v1/unload"):
                return {}  # a sentence
            raise ServerFault(f"answered {path} with something that is not JSON") from None


def message_of(answer: bytes) -> str:
    """The message in an error's answer, on one line."""
    found: Any = answer.decode("utf-8", "replace")
    with suppress(ValueError):
        found = json.loads(answer)
    for key in ("error", "message"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return " ".join(str(found).split())[:300]


def version_of(text: str) -> tuple[int, int] | None:
    """(0, 33) of '0.33.0'; None of a build without a number."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def version_fault(text: str) -> str | None:
    """Why a version cannot be used; None if it can."""
    if (0, 0) < (version_of(text) or OLDEST) < OLDEST:
        return f"is version {text}, and {'.'.join(map(str, OLDEST))} is the oldest that works"
    return None


def check_server(client: VLLMClient, needs: ServerNeeds) -> tuple[str, str]:
    """(the name of the served base, the server's version).

    Raises ServerFault with the first thing that the stage needs and the server lacks.
    """
    client.get("/health")
    version = str(client.get("/version").get("version", ""))
    if (fault := version_fault(version)) is not None:
        raise ServerFault(fault)
    cards = client.get("/v1/models").get("data") or []
    base: Mapping[str, Any] = next((card for card in cards if not card.get("parent")), {})
    if not base:
        raise ServerFault("serves no model")
    name, root = str(base.get("id")), str(base.get("root") or base.get("id"))
    if not any(same_model(needs.model, other) for other in (name, root)):
        raise ServerFault(f"serves {root}, and the stage trains {needs.model}")
    longest = base.get("max_model_len")
    if longest and longest < needs.tokens:
        raise ServerFault(
            f"takes {longest} tokens (--max-model-len), and prompts and answers of the stage have"
            f" up to {needs.tokens}"
        )
    try:
        config = client.get("/server_info?config_format=json").get("vllm_config", {})
    except ServerFault:  # of its development mode: without it, no weights are sent whole
        if needs.lora_rank is None:
            raise ServerFault("was started without VLLM_SERVER_DEV_MODE=1") from None
        return name, version
    if not isinstance(config, dict):
        config = {}
    mode = (config.get("model_config") or {}).get("logprobs_mode")
    if needs.processed and mode not in (None, "processed_logprobs"):
        raise ServerFault(
            f"was started with --logprobs-mode {mode}, whose probabilities leave out the"
            " temperature (--logprobs-mode processed_logprobs)"
        )
    largest = (config.get("lora_config") or {}).get("max_lora_rank", 0)
    if needs.lora_rank is not None and "lora_config" in config and largest < needs.lora_rank:
        raise ServerFault(
            f"takes LoRA up to rank {largest}, and the stage has rank {needs.lora_rank}"
            f" (--enable-lora --max-lora-rank {largest_rank(needs.lora_rank)})"
        )
    return name, version


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same base: a hub id, or a folder however it is written."""
    if one == other:
        return True
    folders = [Path(name).expanduser() for name in (one, other)]
    return all(path.is_dir() for path in folders) and folders[0].resolve() == folders[1].resolve()


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
