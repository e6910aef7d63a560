"""What the leader of a run on several machines tells the others to start.

Names of the plan alone: the command itself is made by each machine from its own plan, so that no
message can start anything else.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.launch.nodes import Place

FLAG = re.compile(r"--[a-z][a-z-]{1,40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where the processes of one training on several machines meet."""

    nodes: int
    node: int
    address: str
    port: int
    id: str  # of this start

    def arguments(self) -> list[str]:
        """For torchrun."""
        return [
            *("--nnodes", str(self.nodes), "--node-rank", str(self.node)),
            *("--rdzv-backend", "static", "--rdzv-id", self.id),
            *("--master-addr", self.address, "--master-port", str(self.port)),
        ]


def new_rendezvous(place: Place) -> Rendezvous:
    """For the leader: a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return Rendezvous(
        nodes=place.nodes, node=0, address=place.address, port=port, id=secrets.token_hex(8)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A stage of one task or of several that is trained, or measured, on every machine."""

    entries: tuple[str, ...]  # their names
    folder: str  # that holds plan.yaml, relative to the run folder: '.'
    flags: tuple[str, ...]
    server: str | None  # the vLLM server
    port: int
    id: str

    def to_message(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "do": "train",
            "entries": list(self.entries),
            "folder": self.folder,
            "flags": list(self.flags),
            "server": self.server,
            "port": self.port,
            "id": self.id,
        }


def order_of(message: Mapping[str, Any]) -> Order:
    """The order of a message. Raises ValueError for one that no leader sends."""
    port, server, folder = (message.get(name) for name in ("port", "server", "folder"))
    run_id = message.get("id")
    if not (
        type(port) is int
        and 0 < port < 2**16
        and (server is None or isinstance(server, str))
        and isinstance(folder, str)
        and not folder.startswith("/")
        and ".." not in folder.split("/")
        and isinstance(run_id, str)
        and re.fullmatch(r"[0-9a-f]{16}", run_id)
    ):
        raise ValueError("an order of another version")
    flags = _texts(message.get("flags"))
    if not all(FLAG.fullmatch(flag) for flag in flags):
        raise ValueError("an order of another version")
    return Order(
        entries=_texts(message.get("entries")),
        folder=folder,
        flags=flags,
        server=server,
        port=port,
        id=run_id,
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise ValueError("an order of another version")
    return tuple(value)
