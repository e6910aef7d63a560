"""`advise ui`: the page, answered by this machine.

Each request is answered in a process forked from this one: what is loaded is there at once, a
request keeps nothing, and a page that is closed ends nothing. Only this machine's own pages may
ask: the address holds a token, and foreign hosts and origins are refused.
"""

from __future__ import annotations

import json
import mimetypes
import os
import secrets
import signal
import sys
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ForkingMixIn, TCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click

from advisor.commands.output import put, say
from advisor.commands.page_answers import ANSWERS, answer
from advisor.commands.page_html import content, page_html, site_folder
from advisor.commands.typed import Main
from advisor.commands.ui_runs import RUNS, left_running, report_of
from advisor.ground.errors import MachineNotReady
from advisor.ground.files import bytes_of
from advisor.ground.terminal import is_terminal

HOST = "127.0.0.1"
MOST_BYTES = 256_000_000  # of a request: data that are dropped on the page
AT_ONCE = 24  # processes; further requests wait
IDLE_S = 20  # what a connection may keep still
SHUT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
PAGE = f"{SHUT}script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
REPORT_PAGE = f"{SHUT}style-src 'unsafe-inline'; img-src data:; sandbox"
HTML = "text/html; charset=utf-8"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ForkingMixIn, TCPServer):
    """The server of one page."""

    allow_reuse_address = True
    max_children = AT_ONCE
    request_queue_size = 256
    block_on_close = False

    def __init__(self, main: Main, port: int) -> None:
        self.main, self.token = main, secrets.token_urlsafe(24)
        example = json.dumps(content()["example"])  # asked here, it loads what answers
        asked = {name: answer(main, ANSWERS[name], example)[0] for name in ("advise", "plan")}
        opening = {name: json.loads(text) for name, text in asked.items()}
        self.page = page_html("served", opening).encode()
        files = (path for path in site_folder().iterdir() if path.suffix in (".css", ".js", ".svg"))
        self.files = {f"/static/{path.name}": bytes_of(path) for path in files}
        super().__init__((HOST, port), Handler)
        self.own = [f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")]
        self.address = f"http://{self.own[0]}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed is no error; all else is said on the terminal."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            say(f"a request failed: {type(error).__name__}: {error}")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "advise", ""
    error_message_format, error_content_type = "%(message)s", "text/plain"
    timeout = IDLE_S

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query, files = dict(parse_qsl(url.query)), self.server.files
        is_open = url.path not in ("/", "/report") or self._knows(query.get("token", ""))
        if not self._is_own() or not is_open:
            self._refuse()
        elif url.path == "/":
            self._send(self.server.page, HTML, PAGE)
        elif url.path == "/report" and (report := report_of(query.get("folder", ""))):
            self._send(report, HTML, REPORT_PAGE)
        elif url.path in files:
            self._send(files[url.path], mimetypes.guess_type(url.path)[0] or "")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        answering = {**ANSWERS, **RUNS}.get(self.path.removeprefix("/api/"))
        if not self._is_own() or not self._knows(self.headers.get("X-Advise-Token", "")):
            return self._refuse()
        if answering is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        length = self.headers.get("Content-Length", "")
        is_sound = length.isdigit() and int(length) <= MOST_BYTES
        body = self.rfile.read(int(length)).decode("utf-8", "replace") if is_sound else None
        text, code = answer(self.server.main, answering, body)
        return self._send(text.encode("utf-8", "replace"), "application/json", code=code)

    def _is_own(self) -> bool:
        """Whether a page of this server asks, by the name of its host and where it comes from."""
        own, origin = self.server.own, self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        is_page = self.command == "GET" and urlsplit(self.path).path == "/"  # a link leads here
        return (
            self.headers.get("Host") in own
            and (origin is None or origin in {f"http://{one}" for one in own})
            and (site in ("none", "same-origin") or is_page)
        )

    def _knows(self, token: str) -> bool:
        own = self.server.token.encode()
        return secrets.compare_digest(token.encode("utf-8", "replace"), own)

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.FORBIDDEN, "refused: open the address that `advise ui` printed")

    def end_headers(self) -> None:
        for name, value in HEADERS.items():  # of refusals, too
            self.send_header(name, value)
        super().end_headers()

    def _send(self, content: bytes, kind: str, policy: str = SHUT, code: int | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        told = {} if code is None else {"X-Advise-Exit": str(code)}
        told |= {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in {"Content-Security-Policy": policy, **told}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: the terminal shows the address."""


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Default: a free one."
)
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.pass_obj
def ui(main: Main, port: int, no_browser: bool) -> None:
    """Open a page that asks, answers, writes plans and runs them on this machine.

    Its address is the first line of standard output. Only this machine can reach it. Ctrl-C ends
    it; a run that it has started goes on.
    """
    if not hasattr(os, "fork"):
        raise MachineNotReady("`advise ui` needs Linux or macOS", hint="type: advise")
    try:
        server = Server(main, port)
    except OSError as error:
        what = f"cannot listen at port {port}: {error.strerror}"
        raise MachineNotReady(what, where="--port", hint="leave it out") from None
    with server:
        put(server.address)
        sys.stdout.flush()
        if not no_browser and is_terminal(sys.stdout):
            webbrowser.open(server.address)
        say("Ctrl-C ends it")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            for line in left_running():
                say(line)
