"""A default StorageClass: each claim gets a folder of the run folder, deleted with the claim."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import urllib3

from cluster.control_plane.access import Cluster
from cluster.control_plane.api import ApiError, Object
from e2e.cluster.services import apply
from e2e.cluster.site import NODE

CLASS = "cloister-local"
PROVISIONER = "cloister.dev/folder"
POLL_S = 0.3


class VolumeMaker:
    """A thread that makes a PersistentVolume for each waiting claim, and removes those whose claim is gone."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="volumes", daemon=True)

    def start(self) -> None:
        """Make the StorageClass and begin."""
        self._folder.mkdir(exist_ok=True)
        default = {"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
        path = f"/apis/storage.k8s.io/v1/storageclasses/{CLASS}"
        content = default | {"provisioner": PROVISIONER, "volumeBindingMode": "Immediate"}
        apply(self._cluster, path, "storage.k8s.io/v1", "StorageClass", content)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; volumes stay as they are. May be called twice."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                self._look()
            except (ApiError, urllib3.exceptions.HTTPError):  # the API server is away: look again
                continue

    def _look(self) -> None:
        for claim in self._cluster.api.get("/api/v1/persistentvolumeclaims")["items"]:
            if claim["spec"].get("storageClassName") == CLASS and claim["status"].get("phase") == "Pending":
                self._make(claim)
        for volume in self._cluster.api.get("/api/v1/persistentvolumes")["items"]:
            if volume["spec"].get("storageClassName") == CLASS and volume["status"].get("phase") == "Released":
                self._remove(volume)

    def _make(self, claim: Object) -> None:
        name = f"pvc-{claim['metadata']['uid']}"
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # kubelet gives no fsGroup to such folders
        reference = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            **{field: claim["metadata"][field] for field in ("name", "namespace", "uid")},
        }
        here = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}]
        spec = {
            "storageClassName": CLASS,
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": reference,
            "hostPath": {"path": str(folder), "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": here}},
        }
        apply(self._cluster, f"/api/v1/persistentvolumes/{name}", "v1", "PersistentVolume", {"spec": spec})

    def _remove(self, volume: Object) -> None:
        name = volume["metadata"]["name"]
        self._cluster.api.delete(f"/api/v1/persistentvolumes/{name}")
        shutil.rmtree(self._folder / name, ignore_errors=True)
