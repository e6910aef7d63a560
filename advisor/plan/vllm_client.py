"""Asks a vLLM server, and believes no answer of it before its shape is checked.

The addresses are those of vLLM's own server (`vllm serve`, read in version 0.33):
`/v1/completions` with token ids, `/v1/load_lora_adapter`, and of its development mode
`/collective_rpc`, `/reset_prefix_cache` and `/server_info`. Only the address that the plan names is
asked, past every proxy, and a redirect is an error.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.json import decode

from advisor.ground.errors import InputError
from advisor.plan.vllm import ServerNeeds, is_local, largest_rank

OLDEST, READ = (0, 22), (0, 33)  # the oldest that TRL 1.16 supports; the one this was written for
ASK_S = 10.0  # for a question that needs no generation
MOST_BYTES = {"GET": 2**24, "POST": 2**30}  # of an answer
SHOWN = 200  # characters of what a server says
KEY = "VLLM_API_KEY"
LORA, WEIGHTS = "/v1/load_lora_adapter", "/collective_rpc"

Answer = TypeVar("Answer")


class ServerFault(Exception):
    """What a server did wrong, in words that follow 'the vLLM server at ...'."""


class OtherAnswer(ServerFault):
    """It answered something that vLLM does not."""


class Version(Struct):
    """Of /version."""

    version: str = ""


class Card(Struct):
    """A model that is served; an adapter has a parent."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class Cards(Struct):
    """Of /v1/models."""

    data: list[Card]


class ModelConfig(Struct):
    """Of a server's configuration."""

    logprobs_mode: str | None = None


class LoraConfig(Struct):
    """Of a server's configuration."""

    max_lora_rank: int = 0


class Config(Struct):
    """A server's configuration."""

    model_config: ModelConfig | None = None
    lora_config: LoraConfig | UnsetType | None = UNSET


class Info(Struct):
    """Of /server_info; older versions describe themselves in a text."""

    vllm_config: Config | str = ""


class Dropped(Struct):
    """Of /reset_prefix_cache."""

    success: bool = True


class LogProbs(Struct):
    """Of the tokens of an answer; None: not known. Rounding may lift one above 0."""

    token_logprobs: list[Annotated[float, Meta(le=1e-3)] | None]


class Choice(Struct):
    """One answer."""

    index: int
    token_ids: list[Annotated[int, Meta(ge=0)]]
    logprobs: LogProbs


class Completions(Struct):
    """Of /v1/completions."""

    choices: list[Choice]


class VLLMClient(Struct, frozen=True):
    """Asks one server."""

    url: str
    timeout_s: float = 600.0
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, timeout_s: float) -> VLLMClient:
        """With the key of VLLM_API_KEY, if the environment has one.

        Raises InputError if others could read it on its way.
        """
        key = os.environ.get(KEY)
        if not key:
            return cls(url, timeout_s)
        if not (key.isascii() and key.isprintable()):
            what = "holds a character that no header may have"
            raise InputError(f"{KEY} {what}", where="environment", hint="copy the key again")
        if urlsplit(url).scheme != "https" and not is_local(url):
            port = urlsplit(url).port or 80
            raise InputError(
                f"{url} is another machine, and the key in {KEY} would go there unencrypted",
                where="launch.vllm.url",
                allowed="a key is sent to an https address, or to this machine (127.0.0.1)",
                hint=f"use https; or a tunnel: ssh -L {port}:127.0.0.1:{port}"
                f" {urlsplit(url).hostname}, with url http://127.0.0.1:{port}; or unset {KEY}",
            )
        return cls(url, timeout_s, {"Authorization": f"Bearer {key}"})

    def get(self, path: str, kind: type[Answer]) -> Answer:
        """The answer to a question. Raises ServerFault."""
        return self._ask("GET", path, None, min(ASK_S, self.timeout_s), kind)

    def post(self, path: str, body: Mapping[str, Any], kind: type[Answer]) -> Answer:
        """The answer to a request. Raises ServerFault."""
        return self._ask("POST", path, body, self.timeout_s, kind)

    def _ask(
        self, method: str, path: str, body: Any, timeout_s: float, kind: type[Answer]
    ) -> Answer:
        parts = urlsplit(self.url)
        is_safe = parts.scheme == "https"
        made = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        connection = made(parts.hostname or "", parts.port, timeout=timeout_s)
        most, began_s, fault = MOST_BYTES[method], time.monotonic(), None
        # The connection's own limit begins anew with each byte that arrives.
        end = threading.Timer(timeout_s, _hang_up, (connection,))
        end.daemon = True
        end.start()
        try:
            data = None if body is None else json.dumps(body, allow_nan=False).encode()
            headers = {"Content-Type": "application/json", **self.headers}
            connection.request(method, parts.path.rstrip("/") + path, data, headers)
            response = connection.getresponse()
            answer = response.read(most + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:  # or no name of a host
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            fault = f"does not answer ({why})"
        finally:
            end.cancel()
            connection.close()
        if time.monotonic() - began_s >= timeout_s:
            raise ServerFault(f"did not answer {path} within {timeout_s:g} s")
        if fault is not None:
            raise ServerFault(fault)
        if response.status != 200:
            raise ServerFault(f"refused {path}: {response.status} {message_of(answer)}")
        if len(answer) > most:
            raise OtherAnswer(f"answered {path} with more than {most:,} bytes")
        return _decoded(path, answer, kind)


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it is closed, or not open yet
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _decoded(path: str, answer: bytes, kind: type[Answer]) -> Answer:
    is_sentence = path == LORA or path.startswith("/v1/unload")
    try:
        return decode(b"{}" if is_sentence or not answer.strip() else answer, type=kind)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # of msgspec: what is wrong, and where in the answer
        why = str(error)[:SHOWN]
    raise OtherAnswer(f"answered {path} with something that vLLM does not: {why}")


def message_of(answer: bytes) -> str:
    """The message in an error's answer, on one line."""
    text = answer[: 2**16].decode("utf-8", "replace")
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = decode(text)
    for key in ("error", "message"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return " ".join((found if isinstance(found, str) else text).split())[:300]


def version_of(text: str) -> tuple[int, int] | None:
    """(0, 33) of '0.33.0'; None of a build without a number."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", text)
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
    client.get("/health", dict)
    version = client.get("/version", Version).version[:SHOWN]
    if (fault := version_fault(version)) is not None:
        raise ServerFault(fault)
    cards = client.get("/v1/models", Cards).data
    base = next((card for card in cards if not card.parent), None)
    if base is None:
        raise ServerFault("serves no model")
    root = base.root or base.id
    if not any(same_model(needs.model, other) for other in (base.id, root)):
        raise ServerFault(f"serves {root[:SHOWN]}, and the stage trains {needs.model}")
    longest = base.max_model_len
    if longest is not None and longest < needs.tokens:
        raise ServerFault(
            f"takes {longest} tokens (--max-model-len), and prompts and answers of the stage have"
            f" up to {needs.tokens}"
        )
    try:
        config = client.get("/server_info?config_format=json", Info).vllm_config
    except OtherAnswer:
        raise
    except ServerFault:  # of its development mode: without it, no weights are sent whole
        if needs.lora_rank is None:
            raise ServerFault("was started without VLLM_SERVER_DEV_MODE=1") from None
        return base.id, version
    if not isinstance(config, Config):
        config = Config()
    mode = config.model_config.logprobs_mode if config.model_config is not None else None
    if needs.processed and mode not in (None, "processed_logprobs"):
        raise ServerFault(
            f"was started with --logprobs-mode {mode[:SHOWN]}, whose probabilities leave out the"
            " temperature (--logprobs-mode processed_logprobs)"
        )
    lora = config.lora_config
    largest = lora.max_lora_rank if isinstance(lora, LoraConfig) else 0
    if needs.lora_rank is not None and lora is not UNSET and largest < needs.lora_rank:
        raise ServerFault(
            f"takes LoRA up to rank {largest}, and the stage has rank {needs.lora_rank}"
            f" (--enable-lora --max-lora-rank {largest_rank(needs.lora_rank)})"
        )
    return base.id, version


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same base: a hub id, or a folder however it is written."""
    if one == other:
        return True
    folders = [Path(name).expanduser() for name in (one, other)]
    with suppress(OSError, ValueError, RuntimeError):  # what no path can be is none
        are_folders = all(path.is_dir() for path in folders)
        return are_folders and folders[0].resolve() == folders[1].resolve()
    return False
