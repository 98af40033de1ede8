"""What the base model's licence asks is carried out by publish, and told on the card and on verify's page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cloister_trainer.model.license_terms import license_warnings
from cloister_trainer.publish.main import publish
from cloister_trainer.publish.verify import verify_adapter
from cloister_trainer.publish.verify_page import render_page
from cloister_trainer.records import LicenseFinding
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.seaweedfs import SeaweedFS
from support.staged_run import StagedRun, digest, make_adapter, published_folder, stage

NOTICE_31 = "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc."
AGREEMENT = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def model_with(folder: Path, base: Path, files: dict[str, str]) -> Path:
    """A copy of the tiny model whose licence files are `files`."""
    shutil.copytree(base, folder)
    (folder / "LICENSE").unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def licensed(staged: StagedRun, license_id: str, files: list[str], evidence: str = "LicenseText") -> StagedRun:
    """The run with this licence found for its model."""
    finding = LicenseFinding.model_validate({"id": license_id, "evidence": evidence, "files": files})
    model = staged.plan.model.model_copy(update={"license": finding})
    staged.plan = staged.plan.model_copy(update={"model": model})
    return staged


def front_matter(card: str) -> dict[str, Any]:
    fields: dict[str, Any] = YAML(typ="safe").load(card.split("---\n")[1])
    return fields


def test_a_llama_adapter_has_all_that_its_licence_asks(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = model_with(tmp_path / "model", tiny_llama, {"LICENSE": AGREEMENT, "USE_POLICY.md": "# Policy\n"})
    staged = licensed(stage(tmp_path.as_uri(), model, tiny_adapter), "llama3.1", ["LICENSE", "USE_POLICY.md"])

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert (folder / "LICENSE").read_text() == AGREEMENT
    assert (folder / "USE_POLICY.md").exists()
    notice = (folder / "NOTICE").read_text()
    assert notice.startswith(f"{NOTICE_31} All Rights Reserved.\n")
    assert "changes to the weights of model" in notice
    card = (folder / "README.md").read_text()
    assert "\n**Built with Llama**\n" in card
    assert front_matter(card)["license"] == "llama3.1"
    assert front_matter(card)["model_name"] == "Llama-contracts"
    assert 'its name must begin with "Llama", for example Llama-contracts.' in card
    assert "more than 700 million monthly active users" in card
    assert "Acceptable Use Policy (llama.com/llama3\\_1/use-policy)" in card
    assert "Pass the licence's text on with every copy: LICENSE." in card

    report = verify_adapter(storage, staged.run.spec.output.uri)
    assert report.ok, report.checks
    page = " ".join(render_page(report).split())
    assert "Licence asks Pass the licence's text on with every copy: LICENSE. Keep the notice file" in page
    assert "700 million monthly active users" in page


def test_a_text_that_is_missing_is_told_before_training_and_on_the_card(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = model_with(tmp_path / "model", tiny_llama, {})
    staged = licensed(stage(tmp_path.as_uri(), model, tiny_adapter), "gemma", [], evidence="Stated")

    (warning,) = license_warnings(staged.plan.model.license)
    assert warning.startswith("The licence (Gemma Terms of Use) must travel with the adapter") and "LICENSE" in warning
    folder = published_folder(staged, storage, tmp_path / "scratch")

    card = (folder / "README.md").read_text()
    assert "It was not in the base model's folder and is missing here" in card
    assert (folder / "NOTICE").read_text().startswith("Gemma is provided under and subject to the Gemma Terms of Use")
    assert "Built with" not in card and "model_name" not in front_matter(card)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"Notice": f"{NOTICE_31.replace('©', '(c)')}\nAll Rights Reserved."}, ["LICENSE", "Notice"]),
        ({"NOTICE": "This product includes tests."}, ["LICENSE", "NOTICE", "NOTICE.base-model"]),
    ],
    ids=["has the line", "lacks the line"],
)
def test_the_models_own_notice_stays_as_it_is(
    own: dict[str, str], expected: list[str], tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    model = model_with(tmp_path / "model", tiny_llama, {"LICENSE": AGREEMENT, **own})
    staged = licensed(stage(tmp_path.as_uri(), model, tiny_adapter), "llama3.1", ["LICENSE", *own])

    folder = published_folder(staged, storage, tmp_path / "scratch")

    found = sorted(path.name for path in folder.iterdir() if path.name.upper().startswith(("NOTICE", "LICENSE")))
    assert found == expected
    for name, text in own.items():
        assert (folder / name).read_text() == text


def test_a_plain_licence_asks_for_its_text_only(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    folder = published_folder(staged, storage, tmp_path / "scratch")
    card = (folder / "README.md").read_text()
    assert "Apache License 2.0 holds for the adapter too." in card
    assert "- Pass the licence's text on with every copy: LICENSE.\n\nLimits" in card
    assert not (folder / "NOTICE").exists()
    assert license_warnings(LicenseFinding(id="mit", evidence="ModelCard")) == []


def test_a_licence_without_a_summary_says_so(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = licensed(stage(tmp_path.as_uri(), tiny_llama, tiny_adapter), "our-own", ["LICENSE"])
    card = (published_folder(staged, storage, tmp_path / "scratch") / "README.md").read_text()
    assert "The base model's licence holds for the adapter too." in card
    assert "- No summary of this licence is known here: read its text" in card


@pytest.mark.parametrize(("rank", "vllm_rank"), [(16, None), (24, 32)])
def test_kserve_is_told_a_rank_above_vllms_own_limit(
    rank: int, vllm_rank: int | None, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path,
    seaweedfs: SeaweedFS, s3_uri: str,
) -> None:  # fmt: skip
    """With the merged model's own notice, since it may leave without the folder around it."""
    storage = open_storage(environ=seaweedfs.environment())
    adapter = tmp_path / "adapter"
    make_adapter(tiny_llama, adapter, r=rank, lora_alpha=2 * rank)
    staged = licensed(
        stage(s3_uri, tiny_llama, adapter, output={"mergedModel": True}, lora={"rank": rank, "alpha": 2 * rank}),
        "llama3.1",
        ["LICENSE"],
    )
    staged.checks = staged.checks.model_copy(update={"merged_files": [digest(tiny_llama / "model.safetensors")]})
    storage.upload(tiny_llama / "model.safetensors", f"{staged.run.layout.merged}/model.safetensors")
    staged.store(storage)

    uri = publish(staged.run, staged.plan, storage, Reporter.silent(), tmp_path / "scratch", None).output.uri

    card = storage.read(f"{uri}/README.md").decode()
    service = YAML(typ="safe").load(card.partition("```yaml\n")[2].partition("```")[0])
    lora = service["spec"]["model"]["lora"]
    assert lora == {
        "adapters": [{"name": "contracts", "uri": uri}],
        **({"maxRank": vllm_rank} if vllm_rank is not None else {}),
    }
    assert "KServe 0.19 or newer" in card
    assert storage.read(f"{uri}/merged/NOTICE") == storage.read(f"{uri}/NOTICE")
    assert verify_adapter(storage, staged.run.spec.output.uri).ok
