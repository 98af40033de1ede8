"""Every way in which a store says no is another error, with the URI and what to do, and never with a credential."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
import socket
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.reasons import FailureReason
from cloister_api.run import StorageDefaults
from cloister_trainer.storage import (
    AccessDenied,
    Full,
    MissingBucket,
    MissingObject,
    RequestRefused,
    Storage,
    StorageError,
    Unreachable,
    Unsupported,
    open_storage,
)
from support.s3_proxy import METHODS, Faults, S3Proxy
from support.seaweedfs import Identity, SeaweedFS, free_ports, new_identity
from support.storage_operations import OPERATIONS, WRITES, failure, quick

each_operation = pytest.mark.parametrize("operation", OPERATIONS)


@pytest.fixture
def uri(s3_storage: Storage, s3_uri: str) -> str:
    """An object that is there."""
    s3_storage.write(f"{s3_uri}/there", b"x")
    return f"{s3_uri}/there"


@each_operation
def test_an_unknown_key_is_denied(seaweedfs: SeaweedFS, uri: str, operation: str, tmp_path: Path) -> None:
    stranger = new_identity("stranger")
    error = failure(operation, open_storage(environ=seaweedfs.environment(stranger)), uri, tmp_path)
    assert (type(error), error.reason) == (AccessDenied, FailureReason.STORAGE_ACCESS_DENIED)
    assert uri in error.message
    assert "correct" in error.message


def test_a_wrong_secret_is_told_from_an_unknown_key(seaweedfs: SeaweedFS, uri: str) -> None:
    wrong = dataclasses.replace(seaweedfs.admin, secret_key="wrong")
    with pytest.raises(AccessDenied, match="secret key does not belong"):
        open_storage(environ=seaweedfs.environment(wrong)).read(uri)
    with pytest.raises(AccessDenied, match="does not know the access key"):
        open_storage(environ=seaweedfs.environment(new_identity("stranger"))).read(uri)


@pytest.mark.parametrize("operation", WRITES)
def test_who_may_only_read_cannot_write(seaweedfs: SeaweedFS, uri: str, operation: str, tmp_path: Path) -> None:
    reader = open_storage(environ=seaweedfs.environment(seaweedfs.reader))
    assert reader.read(uri) == b"x"
    error = failure(operation, reader, uri, tmp_path)
    assert (type(error), error.reason) == (AccessDenied, FailureReason.STORAGE_ACCESS_DENIED)
    assert uri in error.message


def test_no_credentials_at_all(seaweedfs: SeaweedFS, uri: str, tmp_path: Path) -> None:
    nothing = {"AWS_ENDPOINT_URL": seaweedfs.endpoint, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    with pytest.raises(AccessDenied, match="There are no credentials") as denied:
        open_storage(environ={**nothing, "AWS_CONFIG_FILE": str(tmp_path / "none")}).read(uri)
    assert uri in denied.value.message
    assert "AWS_ACCESS_KEY_ID" in denied.value.message


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each != "replace"])
def test_a_missing_bucket_is_named(s3_storage: Storage, operation: str, tmp_path: Path) -> None:
    """SeaweedFS answers If-Match in a missing bucket as any other failed condition."""
    error = failure(operation, s3_storage, "s3://no-such-bucket/x", tmp_path)
    assert type(error) is MissingBucket
    assert "The bucket s3://no-such-bucket does not exist" in error.message
    assert "s3://no-such-bucket/x" in error.message


@each_operation
def test_a_store_that_is_gone_is_unreachable(seaweedfs: SeaweedFS, operation: str, tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    storage = quick({**seaweedfs.environment(), "AWS_ENDPOINT_URL_S3": gone})
    error = failure(operation, storage, "s3://models/x", tmp_path)
    assert (type(error), error.reason) == (Unreachable, FailureReason.STORAGE_UNAVAILABLE)
    assert gone in error.message
    assert "s3://models/x" in error.message


@pytest.mark.parametrize(
    ("status", "code", "expected", "reason"),
    [
        (507, "InsufficientStorage", Full, FailureReason.STORAGE_FULL),
        (403, "QuotaExceeded", Full, FailureReason.STORAGE_FULL),
        (501, "NotImplemented", Unsupported, FailureReason.STORAGE_UNSUPPORTED),
        (503, "SlowDown", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
        (500, "InternalError", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
        (400, "ExpiredToken", AccessDenied, FailureReason.STORAGE_ACCESS_DENIED),
        (403, "RequestTimeTooSkewed", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
        (301, "PermanentRedirect", MissingBucket, FailureReason.SPEC_INVALID),
        (404, "NoSuchKey", MissingObject, FailureReason.SPEC_INVALID),
        (400, "HttpsExpected", RequestRefused, FailureReason.SPEC_INVALID),
        (418, "Teapot", RequestRefused, FailureReason.SPEC_INVALID),
        (400, "IncompleteBody", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
        (409, "BucketBusy", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
        (429, "Slower", Unreachable, FailureReason.STORAGE_UNAVAILABLE),
    ],
)
def test_a_stores_answer_is_told_in_a_sentence(
    seaweedfs: SeaweedFS, status: int, code: str, expected: type[StorageError], reason: FailureReason, tmp_path: Path
) -> None:
    with S3Proxy(seaweedfs, Faults(answer=(status, code))) as proxy:
        error = failure("write", quick(proxy.environment()), "s3://models/x", tmp_path)
    assert (type(error), error.reason) == (expected, reason)
    assert "s3://models/x" in error.message


@each_operation
def test_a_refused_time_is_an_outage_that_names_the_clock(
    seaweedfs: SeaweedFS, uri: str, operation: str, tmp_path: Path
) -> None:
    """Also where the store's answer has no body, to HEAD, of which most operations make use."""
    with S3Proxy(seaweedfs, Faults(answer=(403, "RequestTimeTooSkewed"), answered=METHODS)) as proxy:
        error = failure(operation, quick(proxy.environment()), uri, tmp_path)
    assert (type(error), error.reason) == (Unreachable, FailureReason.STORAGE_UNAVAILABLE)
    assert re.search(r"this machine's clock says \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00; set it", error.message)
    assert uri in error.message


def test_a_head_that_alone_is_refused_is_answered_by_a_get(seaweedfs: SeaweedFS, uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(answer=(403, "RequestTimeTooSkewed"), answered=("HEAD",))) as proxy:
        (found,) = quick(proxy.environment()).list(uri)
    assert (found.uri, found.size) == (uri, 1)
    assert found.etag == quick(seaweedfs.environment()).list(uri)[0].etag


def test_a_store_that_ignores_conditions_is_unsupported(seaweedfs: SeaweedFS, s3_uri: str) -> None:
    with S3Proxy(seaweedfs, Faults(ignore_conditions=True)) as proxy:
        storage = open_storage(environ=proxy.environment())
        with pytest.raises(Unsupported, match="ignores If-None-Match") as refused:
            storage.check_conditional_put(f"{s3_uri}/adapters")
        assert refused.value.reason is FailureReason.STORAGE_UNSUPPORTED
        assert f"{s3_uri}/adapters" in refused.value.message
        assert storage.delete_prefix(f"{s3_uri}/adapters") == 0


def test_a_certificate_that_nobody_trusts_asks_for_the_ca(
    seaweedfs: SeaweedFS, tls_proxy: tuple[str, Path], uri: str, tmp_path: Path
) -> None:
    endpoint, ca = tls_proxy
    environment = {**seaweedfs.environment(), "AWS_ENDPOINT_URL_S3": endpoint}
    with pytest.raises(Unreachable, match="AWS_CA_BUNDLE"):
        quick(environment).read(uri)
    assert open_storage(environ={**environment, "AWS_CA_BUNDLE": str(ca)}).read(uri) == b"x"
    assert open_storage(environ={**environment, "CLOISTER_STORAGE_CA": str(ca)}).read(uri) == b"x"
    assert open_storage(StorageDefaults(ca_file=str(ca)), environment).read(uri) == b"x"


def test_settings_that_cannot_work_are_refused(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    for setting, value, sentence in [
        ("AWS_CA_BUNDLE", str(tmp_path / "none.crt"), "does not exist"),
        ("AWS_ENDPOINT_URL_S3", "store:8333", "is not a URL"),
        ("AWS_ENDPOINT_URL_S3", "http://store:port", "is not a URL"),
        ("AWS_ENDPOINT_URL_S3", "http://[store", "is not a URL"),
        ("AWS_ENDPOINT_URL_S3", "http://me:hunter2@store", "holds a user or password"),
        ("AWS_ENDPOINT_URL_S3", "http:/me:hunter2@store", "holds a user or password"),
        ("AWS_ENDPOINT_URL_S3", "me:hunter2@store:8333", "holds a user or password"),
        ("AWS_ENDPOINT_URL_S3", "http://me:hunt/er2@store", "holds a user or password"),
    ]:
        with pytest.raises(StorageError, match=sentence) as refused:
            open_storage(environ={**seaweedfs.environment(), setting: value}).read("s3://models/x")
        assert refused.value.reason is FailureReason.SPEC_INVALID
        assert "hunter2" not in refused.value.message


def test_an_endpoint_of_awss_own_file_is_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://me:hunter2@store\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.raises(StorageError, match="holds a user or password") as refused:
        open_storage(environ=environment).read("s3://models/x")
    assert "hunter2" not in refused.value.message


def test_a_400_asks_for_the_right_endpoint(seaweedfs: SeaweedFS) -> None:
    with S3Proxy(seaweedfs, Faults(answer=(400, "Odd"))) as proxy:
        with pytest.raises(RequestRefused, match="check http or https") as refused:
            quick(proxy.environment()).write("s3://models/x", b"")
        assert proxy.endpoint in refused.value.message


def test_the_environment_goes_over_the_admins_defaults(seaweedfs: SeaweedFS, uri: str) -> None:
    elsewhere = StorageDefaults(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", region="eu-central-1")
    assert open_storage(elsewhere, seaweedfs.environment()).read(uri) == b"x"
    keys = {name: value for name, value in seaweedfs.environment().items() if "KEY" in name}
    assert open_storage(StorageDefaults(endpoint=seaweedfs.endpoint), keys).read(uri) == b"x"


def test_nothing_asks_the_services_of_a_cloud(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without keys botocore would dial the instance's and the container's metadata; nothing may leave the cluster."""
    nothing = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    with socket.create_server(("127.0.0.1", 0)) as metadata:
        address = f"http://127.0.0.1:{metadata.getsockname()[1]}/"
        for name in ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT"):
            monkeypatch.setenv(name, address)
        with pytest.raises(AccessDenied, match="There are no credentials"):
            open_storage(StorageDefaults(endpoint="http://127.0.0.1:1"), nothing).read(uri)
        metadata.setblocking(False)
        with pytest.raises(BlockingIOError):
            metadata.accept()


def test_no_credential_is_in_any_message_or_log(
    seaweedfs: SeaweedFS, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (None, "urllib3", "urllib3.connectionpool"):  # whatever a library has set or configured away
        caplog.set_level(logging.DEBUG, logger=name)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    wrong = dataclasses.replace(seaweedfs.admin, secret_key="wrong-secret-wrong-secret")
    said: list[str] = []
    who = [(seaweedfs.admin, ""), (seaweedfs.admin, "s3cr3t-token"), (seaweedfs.reader, ""), (wrong, "")]
    for identity, token in who:
        storage = open_storage(environ={**seaweedfs.environment(identity), "AWS_SESSION_TOKEN": token})
        said += [repr(storage), str(pickle.dumps(storage))]
        for place in (uri, f"{uri}/not-there", "s3://no-such-bucket/x"):
            said += [_all_that_is_said(storage, operation, place, tmp_path) for operation in OPERATIONS]
    everything = "\n".join([*said, caplog.text])
    assert "There is no object" in everything
    assert "GET /" in everything, "urllib3's debug log is there, so the log was looked at"
    for secret in _secrets(seaweedfs.admin, seaweedfs.reader, wrong):
        assert secret not in everything


def _secrets(*identities: Identity) -> Iterator[str]:
    yield "s3cr3t-token"
    for identity in identities:
        yield identity.access_key
        yield identity.secret_key


def _all_that_is_said(storage: Storage, operation: str, uri: str, folder: Path) -> str:
    try:
        OPERATIONS[operation](storage, uri, folder)
    except StorageError as error:
        return f"{error!r} {error} {traceback.format_exc()}"
    return ""


@pytest.fixture
def tls_proxy(seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The store behind TLS with a certificate of an own CA: the endpoint and the CA's file."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with S3Proxy(seaweedfs, certificate=certificate, key=key) as proxy:
        yield proxy.endpoint, certificate
