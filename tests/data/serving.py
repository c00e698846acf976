"""A server on the loopback address that misbehaves as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional

import pytest


class Server:
    """Serves one file and keeps the headers of every request.

    Attributes:
        cuts: after how many bytes the next responses break, one entry a response; those after the last are whole.
        sized: whether the response says how long it is.
        status: an error that is answered instead.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content = content
        self.cuts: list[int] = []
        self.sized = True
        self.status: Optional[int] = None
        self.requests: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data/{name}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(request.headers))
        if self.status is not None:
            request.send_error(self.status)
            return
        body = self.content
        request.send_response(200)
        if self.sized:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@contextmanager
def serving(content: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves `content` under `name`, without a proxy on the way."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server(content, name)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
