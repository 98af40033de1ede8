"""The Kubernetes API, as few calls as the operator makes. The only module that imports the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError

from cloister_operator.kept import what_is_read

FIELD_MANAGER = "cloister-operator"
MERGE_PATCH = "application/merge-patch+json"
TIMEOUT_SECONDS = 30
LOG_TIMEOUT_SECONDS = 5
"""A log comes from a kubelet, which may be away with its node."""
LIST_CHUNK = 200
"""Objects of one answer, so that a long list is never whole in memory as it was sent."""
LOG_LINES = 1000
LOG_CHARACTERS = 256 * 1024

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of object and where it lies in the API."""

    name: str
    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str = "", part: str = "") -> str:
        """The path of all objects, of those in a namespace, of one, or of a part of one."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        pieces = [root, *(["namespaces", namespace] if namespace else []), self.plural, name, part]
        return "/".join(piece for piece in pieces if piece)


@dataclass(frozen=True)
class Listing:
    """Objects of a kind, and the version of the cluster that they were read at."""

    items: list[Object]
    version: int


KINDS = {
    kind.name: kind
    for kind in (
        Kind("FineTuneJob", "cloister.dev/v1alpha1", "finetunejobs"),
        Kind("Job", "batch/v1", "jobs"),
        Kind("Pod", "v1", "pods"),
        Kind("ConfigMap", "v1", "configmaps"),
        Kind("Event", "v1", "events"),
        Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
        Kind("RayJob", "ray.io/v1", "rayjobs"),
        Kind("RayCluster", "ray.io/v1", "rayclusters"),
        Kind("Workload", "kueue.x-k8s.io/v1beta1", "workloads"),
        # What an installation looks at and makes; the operator itself has no right to these.
        Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions"),
        Kind("Deployment", "apps/v1", "deployments"),
        Kind("Node", "v1", "nodes"),
        Kind("Secret", "v1", "secrets"),
    )
}


class ClusterError(Exception):
    """The API did not do what it was asked to."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status

    @property
    def gone(self) -> bool:
        """The object, or its whole kind, is not there."""
        return self.status == 404

    @property
    def unheard(self) -> bool:
        """There was no answer: the call may have been made or not."""
        return self.status == 0

    @property
    def refused(self) -> bool:
        """Admission, a quota or the schema refuses the object: trying again at once gives the same."""
        return self.status in (400, 403, 422)

    @property
    def conflict(self) -> bool:
        """The object is not the one, or not in the state, that was expected; or its name is taken."""
        return self.status == 409


class Cluster:
    """Calls by kind and name. Each has a timeout; each failure is a ClusterError."""

    def __init__(self, client: DynamicClient, count: Callable[[str, str], None]) -> None:
        self._client = client
        self._count = count

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing | None:
        """All objects of a kind, as far as they are kept; None when the cluster does not know the kind.

        Selectors: label_selector, field_selector.
        """
        head = {"kind": kind, "apiVersion": KINDS[kind].api_version}
        items: list[Object] = []
        rest: dict[str, Any] = {}
        while True:
            try:
                path = KINDS[kind].path(namespace)
                found = await self._call("get", kind, path, limit=LIST_CHUNK, **selectors, **rest)
            except ClusterError as error:
                if error.gone:
                    return None
                raise
            items += [what_is_read(kind, {**head, **item}) for item in found["items"]]
            if not (token := found["metadata"].get("continue")):
                return Listing(items, int(found["metadata"]["resourceVersion"]))
            rest = {"_continue": token}

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        try:
            return await self._call("get", kind, KINDS[kind].path(namespace, name))
        except ClusterError as error:
            if error.gone:
                return None
            raise

    async def patch_status(self, kind: str, found: Object, patch: Mapping[str, Any]) -> Object:
        """Change the status of exactly this version of an object."""
        metadata = found["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}, "status": patch}
        path = KINDS[kind].path(metadata["namespace"], metadata["name"], "status")
        return await self._call("patch", kind, path, body=body, content_type=MERGE_PATCH)

    async def patch(self, kind: str, found: Mapping[str, Any], patch: Mapping[str, Any]) -> Object:
        """Change an object, if it is still this one, by a merge patch (RFC 7396)."""
        metadata = found["metadata"]
        body = {**patch, "metadata": {**patch.get("metadata", {}), "uid": metadata["uid"]}}
        path = KINDS[kind].path(metadata["namespace"], metadata["name"])
        return await self._call("patch", kind, path, body=body, content_type=MERGE_PATCH, field_manager=FIELD_MANAGER)

    async def apply(self, rendered: Object) -> Object:
        """Server-side apply."""
        kind, metadata = rendered["kind"], rendered["metadata"]
        path = KINDS[kind].path(metadata["namespace"], metadata["name"])
        return await self._call(
            "patch",
            kind,
            path,
            body=rendered,
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts="true",
        )

    async def create(self, rendered: Object) -> Object:
        """POST."""
        kind = rendered["kind"]
        path = KINDS[kind].path(rendered["metadata"]["namespace"])
        return await self._call("post", kind, path, body=rendered, field_manager=FIELD_MANAGER)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this UID. That it is gone, or another's now, is no error.

        Of a child the dependents go first, so that its name is free when its pods are gone. A FineTuneJob goes at once.
        """
        policy = "Background" if kind == "FineTuneJob" else "Foreground"
        body = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        try:
            await self._call("delete", kind, KINDS[kind].path(namespace, name), body=body)
        except ClusterError as error:
            if not (error.gone or error.conflict):
                raise

    async def log(self, namespace: str, pod: str, container: str) -> str:
        """The end of a container's log; empty when there is none yet."""
        query = [("container", container), ("tailLines", str(LOG_LINES))]
        path = KINDS["Pod"].path(namespace, pod, "log")
        try:
            accept = {"Accept": "*/*"}
            parameters = {"query_params": query, "header_params": accept}
            answer = await self._request("get", "Pod", path, parameters, LOG_TIMEOUT_SECONDS)
            return answer.decode(errors="replace")[-LOG_CHARACTERS:]
        except ClusterError as error:
            if error.status in (400, 404):
                return ""
            raise

    async def _call(self, verb: str, kind: str, path: str, **parameters: Any) -> Object:
        """An answer in JSON."""
        found: Object = json.loads(await self._request(verb, kind, path, parameters))
        return found

    async def _request(
        self, verb: str, kind: str, path: str, parameters: dict[str, Any], timeout_s: float = TIMEOUT_SECONDS
    ) -> bytes:
        """The whole body of an answer."""
        self._count(verb, kind)
        try:
            response = await self._client.request(verb, path, serialize=False, _request_timeout=timeout_s, **parameters)
            return bytes(await response.read())
        except DynamicApiError as error:
            raise ClusterError(error.status, f"{verb} {path}: {error.status} {_words(error)}") from None
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise ClusterError(0, f"{verb} {path}: {type(error).__name__}") from None


def _words(error: DynamicApiError) -> str:
    """What the API server says, else the name of the status."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


@asynccontextmanager
async def connect(count: Callable[[str, str], None]) -> AsyncIterator[Cluster]:
    """The cluster that the pod runs in, or the current kubeconfig's."""
    configuration = kubernetes_client.Configuration()
    try:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException:
        await kubernetes_config.load_kube_config(client_configuration=configuration, persist_config=False)
    async with kubernetes_client.ApiClient(configuration) as client:
        yield Cluster(DynamicClient(client), count)
