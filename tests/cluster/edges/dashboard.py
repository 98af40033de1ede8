"""The dashboards of all Ray heads, as far as KubeRay sees them: an HTTP proxy that answers for the jobs API."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cluster.control_plane.plane import HOST

URL = re.compile(
    r"http://(?P<cluster>[a-z0-9-]+)-head-svc\.(?P<namespace>[a-z0-9-]+)\.svc[^/]*/api/jobs/"
    r"(?P<job>[^/?]*)(?P<action>/[a-z]+)?"
)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Call:
    """One request of KubeRay's."""

    method: str
    namespace: str
    cluster: str
    job: str
    """Ray's id of the job: the RayJob's name and five more characters."""
    action: str
    token: str | None
    """What stood in X-Ray-Authorization."""


class RayDashboard:
    """Answers for every RayJob what a test told it; 404 for a job that it was told nothing about, as Ray does."""

    def __init__(self, port: int) -> None:
        self.calls: list[Call] = []
        self._answers: dict[tuple[str, str], dict[str, Any] | None] = {}
        self._server = ThreadingHTTPServer((HOST, port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def tell(self, namespace: str, ray_job: str, status: str, message: str = "", *, ended_s_ago: float = 0) -> None:
        """From now on the RayJob's job is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        now_ms = int(time.time() * 1000)
        times = {"start_time": now_ms} | ({"end_time": now_ms - int(ended_s_ago * 1000)} if status in ENDED else {})
        self._answers[namespace, ray_job] = {"status": status, "message": message, **times}

    def forget(self, namespace: str, ray_job: str) -> None:
        """From now on there is no such job."""
        self._answers.pop((namespace, ray_job), None)

    def silence(self, namespace: str, ray_job: str) -> None:
        """From now on the head does not answer: the connection ends without a word."""
        self._answers[namespace, ray_job] = None

    def calls_for(self, namespace: str, ray_job: str) -> list[Call]:
        """What KubeRay asked about the RayJob."""
        return [call for call in self.calls if call.namespace == namespace and _name(call.job) == ray_job]

    def _answer(self, call: Call) -> tuple[int, Any] | None:
        """Status code and body; None for silence."""
        key = (call.namespace, _name(call.job))
        if key not in self._answers:
            return 404, f"Job {call.job} does not exist"
        answer = self._answers[key]
        if answer is None:
            return None
        if call.action == "/stop":
            if answer["status"] not in ENDED:
                self.tell(*key, "STOPPED")
            return 200, {"stopped": True}
        return 200, answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = URL.match(self.path)
                if found is None:
                    self._send(400, f"not a call to a Ray head's jobs API: {self.path}")
                    return
                token = self.headers.get("X-Ray-Authorization")
                call = Call(
                    self.command, found["namespace"], found["cluster"], found["job"], found["action"] or "", token
                )
                dashboard.calls.append(call)
                answer = dashboard._answer(call)
                if answer is None:
                    self.close_connection = True
                else:
                    self._send(*answer)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def do_DELETE(self) -> None:
                self.do_GET()

            def _send(self, code: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler


def _name(job: str) -> str:
    """The RayJob's name in Ray's id of its job."""
    return job.rpartition("-")[0]
