"""The kubelets of all nodes, as far as the API server sees them: pod status and logs. The only writer of pod status."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import urllib3

from cluster.control_plane.api import ApiError
from cluster.control_plane.plane import HOST, ControlPlane
from cluster.edges.pod_status import Pod, Running, State, is_final, role_of, status_of, stopped_status

INTERVAL_S = 0.2
GONE = (404, 409)
"""The pod was deleted or made anew between our look and our write."""
NOT_READY = (429, 500, 503, 504)


class Kubelet:
    """Starts every pod that is bound to a node, lets deleted ones go, and does to pods what a test orders.

    An order is for one role of a namespace or for one pod, for pods that exist and pods to come; the newest one counts.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._orders: list[tuple[Callable[[Pod], bool], State]] = []
        self._states: dict[str, State] = {}
        self._lingering: set[str] = set()
        self._addresses: dict[str, str] = {}
        self._logs: dict[tuple[str, str], str] = {}
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._server = _log_server(plane, self.log)
        self.port: int = self._server.server_address[1]
        self._threads = [threading.Thread(target=self._server.serve_forever), threading.Thread(target=self._run)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()
        if self._failure:
            raise self._failure

    def order(self, state: State, namespace: str, *, role: str | None = None, pod: str | None = None) -> None:
        """From now on the pods of that role, or that one pod, or all of the namespace, are in `state`."""

        def concerns(each: Pod) -> bool:
            metadata = each["metadata"]
            matches = (role is None or role_of(each) == role) and (pod is None or metadata["name"] == pod)
            return matches and metadata["namespace"] == namespace

        self._orders.insert(0, (concerns, state))

    def linger(self, namespace: str) -> None:
        """Pods of the namespace that are deleted stay Terminating, as on a node that does not answer."""
        self._lingering.add(namespace)

    def let_go(self, namespace: str) -> None:
        """Pods of the namespace that are deleted go again."""
        self._lingering.discard(namespace)

    def say(self, namespace: str, pod: str, text: str) -> None:
        """More of what the pod's container writes to its standard output."""
        self._logs[namespace, pod] = self.log(namespace, pod) + text

    def log(self, namespace: str, pod: str) -> str:
        """All that the pod has written."""
        return self._logs.get((namespace, pod), "")

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                for pod in self._plane.api.get("/api/v1/pods?fieldSelector=spec.nodeName!=")["items"]:
                    self._tend(pod)
            except BaseException as error:
                if not _is_away(error):
                    self._failure = error
                    raise

    def _tend(self, pod: Pod) -> None:
        try:
            if "deletionTimestamp" in pod["metadata"]:
                self._let_go(pod)
            elif not is_final(pod):
                self._bring_into(pod, self._ordered(pod))
        except ApiError as error:
            if error.code not in GONE:
                raise

    def _ordered(self, pod: Pod) -> State:
        return next((state for concerns, state in self._orders if concerns(pod)), Running())

    def _bring_into(self, pod: Pod, state: State) -> None:
        uid = pod["metadata"]["uid"]
        if self._states.get(uid) != state:
            self._write(pod, status_of(pod, state, _now(), self._address(pod)))
            self._states[uid] = state

    def _let_go(self, pod: Pod) -> None:
        if pod["metadata"]["namespace"] in self._lingering:
            return
        if not is_final(pod):
            self._write(pod, stopped_status(pod, _now(), self._address(pod)))
        preconditions = {"uid": pod["metadata"]["uid"]}
        self._plane.api.delete(_path(pod), gracePeriodSeconds=0, preconditions=preconditions)

    def _write(self, pod: Pod, status: Pod) -> None:
        uid = pod["metadata"]["uid"]
        self._plane.api.patch(f"{_path(pod)}/status", {"metadata": {"uid": uid}, "status": status})

    def _address(self, pod: Pod) -> str:
        number = len(self._addresses) + 1
        return self._addresses.setdefault(pod["metadata"]["uid"], f"10.245.{number // 250}.{number % 250 + 1}")


def _is_away(error: BaseException) -> bool:
    """Whether the API server does not answer, or is starting: a kubelet waits for it."""
    return error.code in NOT_READY if isinstance(error, ApiError) else isinstance(error, urllib3.exceptions.HTTPError)


def _path(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log_server(plane: ControlPlane, log: Callable[[str, str], str]) -> ThreadingHTTPServer:
    """The part of a kubelet's own API behind `kubectl logs`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            _, kind, namespace, pod, _ = asked.path.split("/", 4)
            text = _cut(log(namespace, pod), parse_qs(asked.query)).encode()
            self.send_response(200 if kind == "containerLogs" else 404)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*plane.server_certificate("kubelet"))
    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def _cut(text: str, options: dict[str, list[str]]) -> str:
    """The part of a log that tailLines and limitBytes ask for."""
    if "tailLines" in options:
        count = int(options["tailLines"][0])
        text = "".join(text.splitlines(keepends=True)[-count:]) if count else ""
    if "limitBytes" in options:
        text = text.encode()[: int(options["limitBytes"][0])].decode(errors="ignore")
    return text
