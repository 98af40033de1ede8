"""A model folder in S3 is inspected by its small files and by ranges of its weight files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import RunSettings
from cloister_trainer.model.folder import InspectedModel, inspect_model
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.model_folders import write_llama
from support.seaweedfs import SeaweedFS


def inspected(storage: Storage, uri: str, scratch: Path) -> InspectedModel:
    scratch.mkdir()
    return inspect_model(storage, uri, scratch, None, RunSettings(), Reporter.silent())


def test_a_folder_in_s3_is_the_same_model_as_on_disk(seaweedfs: SeaweedFS, bucket: str, tmp_path: Path) -> None:
    storage = open_storage(environ=seaweedfs.environment())
    folder = write_llama(tmp_path / "llama", files=5)
    for path in folder.iterdir():
        storage.upload(path, f"s3://{bucket}/models/llama/{path.name}")
    remote = inspected(storage, f"s3://{bucket}/models/llama/", tmp_path / "remote")
    local = inspected(storage, folder.as_uri(), tmp_path / "local")
    assert remote.tensors == local.tensors
    assert remote.record.header_digest == local.record.header_digest
    assert remote.record.small_files == local.record.small_files
    assert remote.record.uri == f"s3://{bucket}/models/llama"
    assert remote.record.fingerprint != local.record.fingerprint
    assert not list((tmp_path / "remote").glob("*.safetensors"))


@pytest.mark.parametrize("uri", ["s3://{bucket}/nothing/here", "s3://no-such-bucket/llama"])
def test_nothing_in_s3_is_a_model_that_was_not_found(
    uri: str, seaweedfs: SeaweedFS, bucket: str, tmp_path: Path
) -> None:
    storage = open_storage(environ=seaweedfs.environment())
    with pytest.raises(CloisterError) as caught:
        inspected(storage, uri.format(bucket=bucket), tmp_path / "scratch")
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    assert uri.format(bucket=bucket) in caught.value.message
