"""A real HTTP proxy in front of an object store that can be told to misbehave as networks and stores do."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support.seaweedfs import Identity, SeaweedFS

CHUNK_BYTES = 64 * 1024
CONDITIONS = ("if-match", "if-none-match")
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


@dataclass
class Faults:
    """What the proxy does wrong. Everything off: it only forwards and counts."""

    cut_after: int | None = None
    """A GET's connection is cut after so many bytes of its body …"""
    cuts: int = 0
    """… so often."""
    lose_answers: int = 0
    """So many PUTs arrive at the store, but their answers are lost."""
    ignore_conditions: bool = False
    """If-Match and If-None-Match of PUTs never reach the store, as with a store that does not know them."""
    ignore_ranges: bool = False
    """A GET's Range never reaches the store, as with a store that does not know it."""
    hold_after: int | None = None
    """When so many body bytes have passed in all, nothing more passes."""
    change: Callable[[str, bytes], bytes] = field(default=lambda _path, chunk: chunk)
    """Changes the chunks of a GET's body on their way: (path, chunk) -> a chunk of equal length."""
    answer: tuple[int, str] | None = None
    """Requests are answered with this HTTP status and S3 error code …"""
    answered: Container[str] = ("PUT",)
    """… those of these methods."""


class S3Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to the store. Counts the body bytes of GETs.

    With a certificate it speaks TLS.
    """

    def __init__(
        self,
        store: SeaweedFS,
        faults: Faults | None = None,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self.store, self.faults = store, faults or Faults()
        self.bytes_sent = 0
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """AWS's environment names for the store behind the proxy."""
        return {**self.store.environment(identity), "AWS_ENDPOINT_URL_S3": self.endpoint}

    def wait_for_bytes(self, count: int, timeout_s: float = 60) -> None:
        """Wait until so many body bytes have passed; AssertionError when they do not."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.bytes_sent >= count, timeout_s), (
                f"{self.bytes_sent} bytes passed"
            )

    def take(self, fault: str) -> bool:
        """Whether one more of a counted fault is left; it is used up."""
        with self._changed:
            left: int = getattr(self.faults, fault)
            setattr(self.faults, fault, max(0, left - 1))
            return left > 0

    def passed(self, count: int) -> None:
        """`count` body bytes have passed. Holds the caller when it is time to."""
        with self._changed:
            self.bytes_sent += count
            self._changed.notify_all()
        if self.faults.hold_after is not None and self.bytes_sent >= self.faults.hold_after:
            self._closed.wait(60)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: S3Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command in proxy.faults.answered and proxy.faults.answer is not None:
                return self._answer(*proxy.faults.answer)
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.store.port)
            try:
                self._send_upstream(upstream, body)
                answer = upstream.getresponse()
                if self.command == "PUT" and proxy.take("lose_answers"):
                    answer.read()
                    self.close_connection = True
                    return None
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self._pass_body(answer)
            finally:
                upstream.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

        def _answer(self, status: int, code: str) -> None:
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _send_upstream(self, upstream: http.client.HTTPConnection, body: bytes) -> None:
            headers = list(self.headers.items())
            if proxy.faults.ignore_conditions and self.command == "PUT":
                headers = self._signed_anew(body, CONDITIONS)
            if proxy.faults.ignore_ranges and self.command == "GET":
                headers = self._signed_anew(body, ("range",))
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                upstream.putheader(name, value)
            upstream.endheaders(body)

        def _signed_anew(self, body: bytes, without: tuple[str, ...]) -> list[tuple[str, str]]:
            """The headers without some that are signed: so the request needs another signature."""
            dropped = (*without, "authorization", "host", "x-amz-date", "x-amz-content-sha256", "content-length")
            kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            request = AWSRequest(self.command, proxy.store.endpoint + self.path, kept, body)
            keys = proxy.store.admin
            S3SigV4Auth(Credentials(keys.access_key, keys.secret_key), "s3", "us-east-1").add_auth(request)
            host = proxy.store.endpoint.removeprefix("http://")
            return [*request.headers.items(), ("Host", host), ("Content-Length", str(len(body)))]

        def _pass_body(self, answer: http.client.HTTPResponse) -> None:
            counted = self.command == "GET" and "list-type" not in self.path
            left = None
            if counted and proxy.faults.cut_after is not None and proxy.take("cuts"):
                left = proxy.faults.cut_after
            while chunk := answer.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
                self.wfile.write(proxy.faults.change(self.path, chunk) if counted else chunk)
                if counted:
                    proxy.passed(len(chunk))
                if left is not None:
                    left -= len(chunk)
            if left is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                """The client went away, as a killed one does."""

    return Handler
