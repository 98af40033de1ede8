"""A real HTTPS proxy between one client and the API server, which refuses, loses, delays and expires what it is told.

It knows each call by what it asks for. Watches are passed on as they come.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from cluster.control_plane.access import cluster_entry
from cluster.control_plane.api import Object
from cluster.control_plane.plane import HOST, ControlPlane
from cluster.edges.api_calls import Call, Fault, Lose, Precede, Refuse, Rule, read_call

PASSED_ON = ("content-type", "content-encoding", "retry-after", "warning")
LOST = (OSError, http.client.HTTPException, ValueError, AttributeError)
"""What reading from a connection raises that another thread has shut down."""
EXPIRED = {"code": 410, "reason": "Expired", "message": "too old resource version"}


class ApiProxy:
    """Listens on a free port of loopback; without a rule it passes everything on. Remembers all calls but watches."""

    def __init__(self, plane: ControlPlane) -> None:
        self.rule: Rule | None = None
        self.calls: list[Call] = []
        self.done: Counter[str] = Counter()
        """How many calls were refused and lost, watches expired, and their events kept back."""
        self._plane = plane
        self._lock = threading.Lock()
        self._watches: set[_Watch] = set()
        self._gap = False
        cluster: Object = json.loads(plane.kubeconfig.read_text())["clusters"][0]["cluster"]
        self.authority = base64.b64decode(cluster["certificate-authority-data"])
        self.upstream = urlsplit(cluster["server"]).netloc
        self.context = ssl.create_default_context(cadata=self.authority.decode())
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(*plane.server_certificate("api-proxy"))
        self._server = _Server((HOST, 0), _handler(self))
        self._server.socket = serving.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def entry(self) -> Object:
        """The `cluster` of a kubeconfig that goes through this proxy."""
        return cluster_entry(f"https://{HOST}:{self._server.server_port}", self.authority)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.cut_watches()

    @contextmanager
    def ruled(self, rule: Rule) -> Iterator[None]:
        """The rule holds meanwhile."""
        self.rule = rule
        try:
            yield
        finally:
            self.rule = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Meanwhile nothing gets through in either direction, as when the server's machine is gone."""
        with self.ruled(lambda _: Refuse()):
            self.cut_watches()
            yield

    @contextmanager
    def gap_in_watches(self) -> Iterator[None]:
        """What happens meanwhile is told by no watch: in the end each one that was open then has expired (410)."""
        self._gap = True
        try:
            yield
        finally:
            self._gap = False
            for watch in self._open_watches():
                watch.end(expired=True)

    def cut_watches(self) -> None:
        """All watches end without a word."""
        for watch in self._open_watches():
            watch.end(expired=False)

    def decide(self, call: Call) -> Fault | None:
        """What becomes of a call."""
        if call.verb != "watch":
            self.calls.append(call)
        return self.rule(call) if self.rule else None

    def watch(self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> _Watch:
        """A watch begins."""
        begun = _Watch(answer, connection)
        with self._lock:
            self._watches.add(begun)
        return begun

    def watch_ended(self, watch: _Watch) -> None:
        """A watch is over."""
        with self._lock:
            self._watches.discard(watch)

    @property
    def silent(self) -> bool:
        """Whether watches tell nothing now."""
        return self._gap

    def _open_watches(self) -> list[_Watch]:
        with self._lock:
            return list(self._watches)


class _Watch:
    """One watch on its way through."""

    def __init__(self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> None:
        self._answer, self._connection = answer, connection
        self.expired = False

    def lines(self) -> Iterator[bytes]:
        """The events, until the server ends the watch or `end` does."""
        try:
            while line := self._answer.readline():
                yield line
        except LOST:
            return

    def end(self, *, expired: bool) -> None:
        """End it, from any thread."""
        self.expired = expired
        if (found := self._connection.sock) is not None:
            try:
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            except OSError:
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed in the middle of anything; nobody is to be told."""


def _handler(proxy: ApiProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        connection_to_server: http.client.HTTPConnection | None = None

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = read_call(self.command, self.path, self.headers.get("Content-Type", ""))
            fault = proxy.decide(call)
            if isinstance(fault, Precede):
                fault.first()
            if isinstance(fault, Refuse):
                proxy.done["refused"] += 1
                if fault.then:
                    fault.then()
                return self._refuse(fault)
            try:
                answer = self._ask(body)
            except LOST:
                return self._hang_up()
            if isinstance(fault, Lose):
                answer.read()
                proxy.done["lost"] += 1
                if fault.then:
                    fault.then()
                return self._hang_up()
            if call.verb == "watch" and answer.status == 200:
                return self._pass_watch(answer)
            return self._send(answer.status, answer.read(), answer.getheaders())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def _ask(self, body: bytes) -> http.client.HTTPResponse:
            if self.connection_to_server is None:
                self.connection_to_server = http.client.HTTPSConnection(
                    proxy.upstream, context=proxy.context, timeout=300
                )
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            self.connection_to_server.request(self.command, self.path, body or None, headers)
            return self.connection_to_server.getresponse()

        def _pass_watch(self, answer: http.client.HTTPResponse) -> None:
            self.send_response_only(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            assert self.connection_to_server is not None
            watch = proxy.watch(answer, self.connection_to_server)
            try:
                for line in watch.lines():
                    if proxy.silent or watch.expired:
                        proxy.done["kept back"] += 1
                    else:
                        self._chunk(line)
                if watch.expired:
                    proxy.done["expired"] += 1
                    gone = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", **EXPIRED}
                    self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                self._chunk(b"")
            finally:
                proxy.watch_ended(watch)
                self._hang_up()

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def _refuse(self, fault: Refuse) -> None:
            if not fault.code:
                return self._hang_up()
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.code, "message": "no"}
            headers = [("Content-Type", "application/json")]
            if fault.retry_after_s is not None:
                headers.append(("Retry-After", str(fault.retry_after_s)))
            return self._send(fault.code, json.dumps(status).encode(), headers)

        def _send(self, code: int, body: bytes, headers: list[tuple[str, str]]) -> None:
            self.send_response_only(code)
            for name, value in headers:
                if name.lower() in PASSED_ON:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _hang_up(self) -> None:
            self.close_connection = True
            if self.connection_to_server is not None:
                self.connection_to_server.close()
                self.connection_to_server = None

        def finish(self) -> None:
            self._hang_up()
            super().finish()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
