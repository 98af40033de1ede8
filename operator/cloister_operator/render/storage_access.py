"""How pods reach stored data: credentials by reference, claims, the certificates of the store."""

from __future__ import annotations

from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.places import places_read
from cloister_operator.names import run_file_name
from cloister_operator.observe.facts import Job
from cloister_operator.render.run_file import FOLDER

PVC_ROOT = "/mnt/pvc"
SCRATCH = "/scratch"
STORAGE_CA = "/etc/cloister-storage/ca.crt"
SIGNING_KEY = "/etc/cloister-signing/private.pem"
REQUIRED_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OPTIONAL_KEYS = ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION")

Mount = tuple[dict[str, Any], dict[str, Any]]
"""A volume, and where a container has it."""


def credentials(spec: FineTuneJobSpec) -> list[dict[str, Any]]:
    """Environment from the job's Secret: the kubelet reads it, the operator never does."""
    name = spec.storage.secret_name
    required = [_from_secret(name, key, optional=False) for key in REQUIRED_KEYS]
    return required + [_from_secret(name, key, optional=True) for key in OPTIONAL_KEYS]


def _from_secret(secret: str, key: str, *, optional: bool) -> dict[str, Any]:
    reference = {"name": secret, "key": key} | ({"optional": True} if optional else {})
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}


def common_mounts(job: Job, spec: FineTuneJobSpec) -> list[Mount]:
    """The run file, the store's certificates when the Secret holds any, room for temporary and working files."""
    certificates = {"secretName": spec.storage.secret_name, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return [
        _mount("run", {"configMap": {"name": run_file_name(job.name)}}, FOLDER, read_only=True),
        _mount(
            "storage-ca", {"secret": {**certificates, "optional": True}}, STORAGE_CA.rpartition("/")[0], read_only=True
        ),
        _mount("tmp", {"emptyDir": {}}, "/tmp"),  # noqa: S108 (a volume of the pod's own)
        _mount("scratch", {"emptyDir": {}}, SCRATCH),
    ]


def claim_mounts(spec: FineTuneJobSpec, *, all_inputs: bool) -> list[Mount]:
    """Claims that the model, or with `all_inputs` any input, lies on; read-only."""
    uris = places_read(spec).values() if all_inputs else [spec.model.uri]
    claims = {uri.removeprefix("pvc://").partition("/")[0] for uri in uris if uri.startswith("pvc://")}
    return [
        _mount(
            f"claim-{number}",
            {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
            f"{PVC_ROOT}/{claim}",
            read_only=True,
        )
        for number, claim in enumerate(sorted(claims))
    ]


def cache_mounts(spec: FineTuneJobSpec) -> list[Mount]:
    """Where weights lie on a node, when the job says so."""
    cache = spec.model.cache
    if cache is None:
        return []
    if cache.claim_name is not None:
        return [_mount("weights", {"persistentVolumeClaim": {"claimName": cache.claim_name}}, f"{SCRATCH}/models")]
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        claim["storageClassName"] = cache.storage_class_name
    return [_mount("weights", {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}, f"{SCRATCH}/models")]


def signing_mounts(spec: FineTuneJobSpec) -> list[Mount]:
    """The signing key: publish's alone, and that of the check before prepare."""
    if spec.output.signing is None:
        return []
    key = {"secretName": spec.output.signing.secret_name, "items": [{"key": "private.pem", "path": "private.pem"}]}
    return [_mount("signing", {"secret": key}, SIGNING_KEY.rpartition("/")[0], read_only=True)]


def _mount(name: str, source: dict[str, Any], path: str, *, read_only: bool = False) -> Mount:
    return {"name": name, **source}, {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})
