"""A boto3 client from AWS's own environment names over the administrator's defaults; never the instance metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import botocore.session
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader

from cloister_api.reasons import FailureReason
from cloister_api.run import StorageDefaults
from cloister_trainer.storage.errors import StorageError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

STORAGE_CA_ENVIRONMENT = "CLOISTER_STORAGE_CA"
"""Where ca.crt of the job's Secret lies, if it has one: a pod cannot know before it starts."""
DEFAULT_REGION = "us-east-1"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
MAX_ATTEMPTS = 6
"""Tries of one request. botocore's standard mode waits a random part of 1, 2, 4, … 20 s between them."""
MAX_CONNECTIONS = 64

_CREDENTIAL_FILES = ("shared-credentials-file", "config-file")
# At DEBUG botocore logs signed headers: the key's id, the session token and the signature.
_LOGGERS_WITH_CREDENTIALS = ("boto3", "botocore", "s3transfer")


def make_client(defaults: StorageDefaults, environ: Mapping[str, str]) -> S3Client:
    """An S3 client. The environment goes over the administrator's defaults; no network is touched.

    Credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else from the files that
    AWS_PROFILE and AWS_SHARED_CREDENTIALS_FILE name; the instance, container and single sign-on services are never
    asked, because nothing may leave the cluster. StorageError (SPEC_INVALID) when a setting cannot work.
    """
    for logger in map(logging.getLogger, _LOGGERS_WITH_CREDENTIALS):
        logger.setLevel(max(logger.level, logging.INFO))
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or defaults.endpoint
    _check_endpoint(endpoint)
    ca_file = environ.get("AWS_CA_BUNDLE") or _optional_file(environ.get(STORAGE_CA_ENVIRONMENT)) or defaults.ca_file
    if ca_file and not Path(ca_file).is_file():
        raise _setting_error(
            f"The CA bundle {ca_file} does not exist: correct AWS_CA_BUNDLE or the admin's storage.ca."
        )
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or defaults.region or DEFAULT_REGION
    try:
        client = Session(botocore_session=_credentials_session(environ)).client(
            "s3", endpoint_url=endpoint, region_name=region, verify=ca_file or None, config=_config(defaults, environ)
        )
    except (BotoCoreError, ValueError) as error:
        name = type(error).__name__
        raise _setting_error(
            f"The settings of the object store cannot work ({name}): check AWS_* and the profile."
        ) from None
    _check_endpoint(client.meta.endpoint_url)  # AWS's own configuration file may name one, too
    return client


def _optional_file(path: str | None) -> str | None:
    return path if path and Path(path).is_file() else None


def _config(defaults: StorageDefaults, environ: Mapping[str, str]) -> Config:
    attempts = environ.get("AWS_MAX_ATTEMPTS", "")
    return Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": int(attempts) if attempts.isdigit() else MAX_ATTEMPTS},
        max_pool_connections=MAX_CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if defaults.path_style else "virtual"},
        # Stores other than AWS's own reject the trailing checksums that botocore adds unasked.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _credentials_session(environ: Mapping[str, str]) -> botocore.session.Session:
    session = botocore.session.Session(profile=environ.get("AWS_PROFILE"))
    session.register_component("data_loader", _service_models())
    if file := environ.get("AWS_SHARED_CREDENTIALS_FILE"):
        session.set_config_variable("credentials_file", file)
    if file := environ.get("AWS_CONFIG_FILE"):
        session.set_config_variable("config_file", file)
    resolver = session.get_component("credential_provider")
    for provider in list(resolver.providers):
        if provider.METHOD not in _CREDENTIAL_FILES:
            resolver.remove(provider.METHOD)
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        session.set_credentials(key, secret, environ.get("AWS_SESSION_TOKEN"))
    return session


@cache
def _service_models() -> Loader:
    """botocore's descriptions of services. Reading them takes most of the time of making a client."""
    return create_loader()


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    if "@" in endpoint:
        raise _setting_error("The endpoint's URL holds a user or password: give keys in AWS_ACCESS_KEY_ID instead.")
    if not _is_endpoint(endpoint):
        raise _setting_error(f"The endpoint {endpoint!r} is not a URL: expected http://host:port or https://host:port.")


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _setting_error(sentence: str) -> StorageError:
    return StorageError(sentence, FailureReason.SPEC_INVALID)
