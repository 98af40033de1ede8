"""The API server as tests ask it: JSON over HTTPS, independent of the client that the operator uses."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import urllib3

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused; `status` is the Status object that it answered."""

    def __init__(self, code: int, status: Object) -> None:
        super().__init__(f"{code}: {status.get('message', status)}")
        self.code = code
        self.status = status
        self.message: str = status.get("message", "")

    @property
    def causes(self) -> list[Object]:
        """One entry for each thing that is wrong with an object."""
        causes: list[Object] = self.status.get("details", {}).get("causes", [])
        return causes


class Api:
    """The API server that a kubeconfig names, as the user that it names.

    A path is the REST path: `/api/v1/namespaces/x/pods`, `/apis/cloister.dev/v1alpha1/namespaces/x/finetunejobs/y`.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        if "client-certificate-data" in user:
            _load_client_certificate(context, user)
        self.server: str = cluster["server"]
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, maxsize=8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> Any:
        """What the server answers: JSON as an object, anything else as text. ApiError when it refuses."""
        answer = self._pool.request(
            method,
            self.server + path,
            body=None if body is None else json.dumps(body),
            headers=self._headers | {"Content-Type": content_type, "Accept": "application/json"},
            timeout=30.0,
        )
        text = answer.data.decode()
        is_json = text.startswith("{")  # /openapi/v3 calls its JSON text/plain
        if answer.status >= 400:
            raise ApiError(answer.status, json.loads(text) if is_json else {"message": text})
        return json.loads(text) if is_json else text

    def stream(self, path: str) -> Iterator[Object]:
        """The events of a watch, until the server ends it. ApiError when it refuses."""
        answer = self._pool.request(
            "GET", self.server + path, headers=self._headers, timeout=60.0, preload_content=False
        )
        try:
            if answer.status >= 400:
                raise ApiError(answer.status, {"message": answer.data.decode()})
            rest = b""
            for chunk in answer.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        finally:
            answer.close()

    def get(self, path: str) -> Any:
        """The object or list at `path`."""
        return self.request("GET", path)

    def create(self, path: str, body: Object) -> Any:
        """The new object in the collection at `path`, as the server keeps it."""
        return self.request("POST", path, body)

    def replace(self, path: str, body: Object) -> Any:
        """The object at `path`, with all its content replaced."""
        return self.request("PUT", path, body)

    def patch(self, path: str, body: Object) -> Any:
        """The object at `path` after a JSON merge patch."""
        return self.request("PATCH", path, body, content_type=MERGE_PATCH)

    def apply(self, path: str, body: Object, manager: str) -> Any:
        """The object at `path` after a server-side apply by `manager`."""
        return self.request("PATCH", f"{path}?fieldManager={manager}&force=true", body, content_type=APPLY_PATCH)

    def delete(self, path: str, **options: Any) -> Any:
        """What the server answers to a deletion with these DeleteOptions."""
        return self.request("DELETE", path, options or None)

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        try:
            self.get(path)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True


def _load_client_certificate(context: ssl.SSLContext, user: Object) -> None:
    """Python's ssl reads a client's key from files only."""
    with tempfile.TemporaryDirectory(prefix="cloister-client-") as name:
        certificate, key = Path(name) / "crt", Path(name) / "key"
        for file, field in ((certificate, "client-certificate-data"), (key, "client-key-data")):
            file.touch(mode=0o600)
            file.write_bytes(base64.b64decode(user[field]))
        context.load_cert_chain(certificate, key)
