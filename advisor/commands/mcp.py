"""`advise mcp`: the commands that answer, as a server of the Model Context Protocol for agents.

A message is one line of JSON (modelcontextprotocol.io, transport stdio). Clients that begin with
`initialize` are served, and those of the stateless revision, which name it in each request. A call
is the command itself in a process forked from this one: its document is the command's, nothing is
kept between calls, a call can be cancelled, and what prints elsewhere never reaches the client.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Literal, NoReturn
from urllib.parse import unquote

import click
import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from advisor.commands import mcp_tools as offered
from advisor.commands.mcp_tools import PROTOCOL, RULES, TOOLS, Result
from advisor.ground.errors import MachineNotReady
from advisor.ground.resources import docs_page
from advisor.ground.terminal import is_terminal, print_message

HANDSHAKE = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # the newest first
STATELESS = "2026-07-28"
PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, NOT_FOUND, UNKNOWN_REVISION = -32603, -32002, -32022
MOST_AT_ONCE = 4  # calls; the others wait


class Refused(Exception):
    """An error of the protocol: its code and words, and data if there are any."""


class Message(Struct):
    """A request, or a notification, which has no id."""

    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | UnsetType = UNSET
    params: Raw = Raw(b"{}")


class Params(Struct, rename="camel"):
    """What is read of the parameters of any method."""

    name: str = ""
    arguments: Raw = Raw(b"{}")
    uri: str = ""
    protocol_version: str = ""
    request_id: int | str | None = None
    meta: dict[str, Any] = field(name="_meta", default_factory=dict)


class Call(Struct):
    """What a process answers, by printing."""

    work: Callable[[], object]
    reply: Callable[[int, bytes], Result]  # exit code and output -> the result
    given: bytes = b""  # standard input
    with_errors: bool = False  # whether messages are part of the output
    id: int | str = 0
    process: int = 0
    output: bytearray = field(default_factory=bytearray)


class Server:
    """One client, on two file descriptors."""

    def __init__(self, main: Callable[[], object], source: int, wire: int) -> None:
        self.main, self.source, self.wire = main, source, wire
        self.waiting: deque[Call] = deque()
        self.running: dict[int, Call] = {}  # by the pipe that the output comes through

    def serve(self) -> None:
        """Answer until the client has closed its end and every call is answered."""
        begun, is_open = bytearray(), True
        try:
            while is_open or self.running or self.waiting:
                while self.waiting and len(self.running) < MOST_AT_ONCE:
                    self.start(self.waiting.popleft())
                listened = [*self.running, *([self.source] if is_open else [])]
                for ready in select.select(listened, [], [])[0]:
                    if ready in self.running:
                        self.collect(ready)
                    elif ready == self.source:
                        read = os.read(ready, 2**16)
                        is_open = bool(read)
                        begun += read or b"\n"  # the last line needs no end
                        if b"\n" in read or not read:
                            *lines, begun = begun.split(b"\n")
                            for line in filter(bytes.strip, map(bytes, lines)):
                                self.take(line)
        finally:
            for pipe in [*self.running]:
                self.end(pipe)

    def take(self, line: bytes) -> None:
        """Answer a line, or queue what answers it."""
        try:
            message = msgspec.json.decode(line, type=Message)
        except (msgspec.DecodeError, RecursionError) as error:
            is_json = isinstance(error, msgspec.ValidationError)
            code = INVALID_REQUEST if is_json else PARSE_ERROR
            return self.send({"id": None, "error": {"code": code, "message": str(error)}})
        if message.id is not UNSET:
            return self.respond(message.id, lambda: self.answer(message))
        if message.method == "notifications/cancelled":
            with suppress(msgspec.DecodeError):
                self.cancel(msgspec.json.decode(message.params, type=Params).request_id)

    def respond(self, number: int | str, make: Callable[[], Result | Call]) -> None:
        """Send what is made, or why it is refused; queue a call."""
        try:
            made = make()
        except (Refused, msgspec.DecodeError, RecursionError) as fault:
            said = fault.args if isinstance(fault, Refused) else (INVALID_PARAMS, str(fault))
            error = dict(zip(("code", "message", "data"), said, strict=False))
            return self.send({"id": number, "error": error})
        if isinstance(made, Call):
            made.id = number
            return self.waiting.append(made)
        return self.send({"id": number, "result": made})

    def answer(self, message: Message) -> Result | Call:
        """The result, or the call that makes it. Raises Refused and DecodeError."""
        params = msgspec.json.decode(message.params, type=Params)
        revision = params.meta.get(f"{PROTOCOL}/protocolVersion")
        made = partial(self.made, message.method, params, is_stateless=revision is not None)
        if revision is None:
            return made()
        if revision != STATELESS:
            known = {"supported": [STATELESS, *HANDSHAKE], "requested": revision}
            raise Refused(UNKNOWN_REVISION, "unsupported protocol version", known)
        if f"{PROTOCOL}/clientCapabilities" not in params.meta:
            raise Refused(INVALID_PARAMS, f"_meta: {PROTOCOL}/clientCapabilities is missing")
        result, whole = made(), partial(offered.stateless, is_cached=message.method != "tools/call")
        if not isinstance(result, Call):
            return whole(result)
        reply = result.reply
        result.reply = lambda code, output: whole(reply(code, output))
        return result

    def made(self, method: str, params: Params, *, is_stateless: bool) -> Result | Call:
        """What a method answers to clients of any revision."""
        match method:
            case "initialize":
                asked = params.protocol_version
                revision = asked if asked in HANDSHAKE else HANDSHAKE[0]
                return {"protocolVersion": revision, "serverInfo": offered.SERVER, **offered.ABOUT}
            case "server/discover":
                return {"supportedVersions": [STATELESS, *HANDSHAKE], **offered.ABOUT}
            case "ping":
                return {}
            case "tools/list":
                return listed("tools", offered.tool_list)
            case "resources/list":
                return listed("resources", offered.resource_list)
            case "resources/templates/list":
                one = {"uriTemplate": f"{RULES}{{+id}}", "name": "rule", "mimeType": "text/plain"}
                return {"resourceTemplates": [one]}
            case "tools/call":
                return self.call(params.name, params.arguments)
            case "resources/read":
                return self.read(params.uri, INVALID_PARAMS if is_stateless else NOT_FOUND)
        raise Refused(UNKNOWN_METHOD, f"unknown method '{method}'")

    def call(self, name: str, arguments: Raw) -> Call:
        """The command that a tool is."""
        if name not in TOOLS:
            raise Refused(INVALID_PARAMS, f"unknown tool '{name}'; known: {', '.join(TOOLS)}")
        words, given = TOOLS[name].line(arguments)
        module = words[0] if words[0].isalpha() else "advise"
        import_module(f"advisor.commands.{module}")  # here, so that later calls find it loaded
        is_text = name == "explain"
        reply = partial(offered.replied, is_text=is_text)
        return Call(partial(self.run, words), reply, given, with_errors=is_text)

    def read(self, uri: str, not_found: int) -> Result | Call:
        """The text of a resource."""

        def reply(code: int, output: bytes, kind: str = "text/plain") -> Result:
            if code:
                raise Refused(not_found, f"no resource '{uri}'", {"uri": uri})
            return {"contents": [{"uri": uri, "mimeType": kind, "text": output.decode()}]}

        if uri == offered.GLOSSARY:
            return reply(0, docs_page("glossary").encode(), "text/markdown")
        if not uri.startswith(RULES):
            return reply(1, b"")
        name = msgspec.json.encode({"id": unquote(uri.removeprefix(RULES))})
        return Call(partial(self.run, TOOLS["explain"].line(Raw(name))[0]), reply)

    # ----------------------------------------------------------------------- processes

    def run(self, words: list[str]) -> None:
        """Run the command as if these words had been typed after `advise`."""
        sys.argv[1:] = words
        self.main()

    def start(self, call: Call) -> None:
        """Start the process of a call."""
        pipe, end = os.pipe()
        call.process = os.fork()
        if not call.process:
            self.work(call, end)
        os.close(end)
        self.running[pipe] = call

    def work(self, call: Call, end: int) -> NoReturn:
        """Do the work of a call in a process of its own, with its own standard streams."""
        code = 1
        try:
            os.close(self.wire)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(end, 1)
            if call.with_errors:
                os.dup2(end, 2)
            sys.stdin = io.TextIOWrapper(io.BytesIO(call.given), "utf-8")
            for stream in (sys.stdout, sys.stderr):  # whatever the locale is
                stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
            call.work()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        except Exception as error:  # of a list: commands end by themselves
            print_message(str(error))
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def collect(self, pipe: int) -> None:
        """Keep what a process printed; at its end send the answer."""
        call, read = self.running[pipe], os.read(pipe, 2**16)
        call.output += read
        if not read:
            code = self.end(pipe, kill=False)
            self.respond(call.id, lambda: call.reply(code, bytes(call.output)))

    def cancel(self, number: int | str | None) -> None:
        """Forget a call that waits, end one that runs."""
        self.waiting = deque(call for call in self.waiting if call.id != number)
        for pipe in [pipe for pipe, call in self.running.items() if call.id == number]:
            self.end(pipe)

    def end(self, pipe: int, *, kill: bool = True) -> int:
        """Wait for the process of a pipe. Returns its exit code, negative for a signal."""
        call = self.running.pop(pipe)
        os.close(pipe)
        if kill:
            os.kill(call.process, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(call.process, 0)[1])

    def send(self, message: Result) -> None:
        """Write one message as one line."""
        line = memoryview(msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n")
        while line:
            line = line[os.write(self.wire, line) :]


def listed(key: str, make: Callable[[], object]) -> Call:
    """A list that a process makes: it loads rules, which no later call should find loaded."""

    def reply(code: int, output: bytes) -> Result:
        if code:
            raise Refused(INTERNAL_ERROR, f"the list of {key} could not be made")
        return {key: Raw(output)}

    return Call(lambda: sys.stdout.write(msgspec.json.encode(make()).decode()), reply)


@click.command()
@click.pass_obj
def mcp(main: Callable[[], object]) -> None:
    """Answer agents over standard input and output, by the Model Context Protocol.

    An agent starts it and asks it; docs/agents.md says how to set that up. It trains and writes
    nothing: a run is handed back as a command.
    """
    if not hasattr(os, "fork"):
        raise MachineNotReady("`advise mcp` needs Linux or macOS", hint="type: advise --json")
    if is_terminal(sys.stdin):
        print_message("an agent starts this and writes JSON lines to it; Ctrl-D ends it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wire = os.dup(1)
    os.dup2(2, 1)  # what else prints here, a library's warning, goes to standard error
    Server(main, 0, wire).serve()
