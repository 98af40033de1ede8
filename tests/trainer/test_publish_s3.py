"""publish on a real S3 server: conditional writes, a signed adapter with a merged model, verify."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.publish.check import check_output
from cloister_trainer.publish.main import publish
from cloister_trainer.publish.verify import verify_adapter
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.seaweedfs import SeaweedFS
from support.signing import make_keys
from support.staged_run import digest, stage

SECOND = "bbbbbbbb-2222-3333-4444-555555555555"


@pytest.fixture
def storage(seaweedfs: SeaweedFS) -> Storage:
    return open_storage(environ=seaweedfs.environment())


def test_a_signed_adapter_with_a_merged_model_is_published_replaced_and_verified(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage, bucket: str
) -> None:
    keys = make_keys(tmp_path)
    first = stage(f"s3://{bucket}", tiny_llama, tiny_adapter, output={"mergedModel": True})
    first.checks = first.checks.model_copy(update={"merged_files": [digest(tiny_llama / "model.safetensors")]})
    storage.upload(tiny_llama / "model.safetensors", join(first.run.layout.merged, "model.safetensors"))
    first.store(storage)

    assert check_output(first.run, storage, None, keys.private) is None
    status = publish(first.run, first.plan, storage, Reporter(), tmp_path / "scratch", keys.private).output

    report = verify_adapter(storage, first.run.spec.output.uri, keys.public)
    assert report.ok, report.checks
    assert report.uri == status.uri
    assert storage.list(first.run.layout.tokens) == storage.list(first.run.layout.merged) == []
    assert storage.list(join(first.run.spec.output.uri, ".cloister-probe")) == []
    card = storage.read(join(status.uri, "README.md")).decode()
    assert f"aws s3 sync {status.uri}/ ADAPTER/" in card
    assert f"uri: {status.uri}" in card

    second = stage(f"s3://{bucket}", tiny_llama, tiny_adapter, uid=SECOND)
    second.store(storage)
    with pytest.raises(CloisterError, match=first.run.uid) as refused:
        publish(second.run, second.plan, storage, Reporter(), tmp_path / "scratch")
    assert refused.value.reason is FailureReason.OUTPUT_EXISTS

    third = stage(f"s3://{bucket}", tiny_llama, tiny_adapter, uid=SECOND, output={"ifExists": "Replace"})
    publish(third.run, third.plan, storage, Reporter(), tmp_path / "scratch")
    assert verify_adapter(storage, first.run.spec.output.uri).uri.endswith(SECOND)
    assert verify_adapter(storage, status.uri, keys.public).ok, "the replaced folder stays as it was"


def test_the_early_check_needs_a_bucket_that_can_be_written(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage("s3://no-such-bucket-here", tiny_llama, tiny_adapter)

    with pytest.raises(CloisterError, match="no-such-bucket-here"):
        check_output(staged.run, storage, None, None)
