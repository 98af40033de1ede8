"""The licence: text before card before family before what is only stated; contradictions and unknowns are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import LicenseEvidence, RunSettings
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.license import find_license, license_fields
from cloister_trainer.model.license_texts import LICENSE_TEXTS, normal_id, recognise
from cloister_trainer.records import FileDigest, LicenseFinding
from support.model_folders import APACHE, LLAMA_31, MIT


def found(
    folder: Path,
    files: dict[str, str],
    stated: str | None = None,
    settings: RunSettings | None = None,
    model_type: str = "llama",
) -> LicenseFinding:
    digests = []
    for name, text in files.items():
        (folder / name).write_text(text)
        digests.append(FileDigest(name=name, size=len(text), sha256=hashlib.sha256(text.encode()).hexdigest()))
    return find_license(folder, digests, FAMILIES[model_type], stated, settings or RunSettings())


def card(front: str) -> str:
    return f"---\n{front}\n---\n# A model\n"


TEXTS = {
    "apache-2.0": 33 * " " + "Apache License\n" + 27 * " " + "Version 2.0, January 2004\n",
    "mit": MIT,
    "modified-mit": "Modified MIT License\n\nCopyright (c) 2025 Moonshot AI\n\n" + MIT.replace("MIT License\n\n", ""),
    "llama2": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: July 18, 2023",
    "llama3": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date: April 18, 2024",
    "llama3.1": LLAMA_31,
    "llama3.2": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT",
    "llama3.3": "LLAMA 3.3 COMMUNITY LICENSE AGREEMENT",
    "gemma": "Gemma Terms of Use\n\nLast modified: April 1, 2024",
    "qwen": "Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date: September 19, 2024",
    "qwen-research": "Qwen RESEARCH LICENSE AGREEMENT",
    "tongyi-qianwen": "Tongyi Qianwen LICENSE AGREEMENT\n\nTongyi Qianwen Release Date: August 3, 2023",
    "deepseek": "DEEPSEEK LICENSE AGREEMENT\n\nVersion 1.0, 23 October 2023",
    "minimax": "MINIMAX MODEL LICENSE AGREEMENT",
    "mrl": "# Mistral AI Research License\n\nIf You want to use a Mistral Model, ...",
    "mnpl": "# Mistral AI Non-Production License",
    "bigscience-openrail-m": "BigScience OpenRAIL-M\n",
}


@pytest.mark.parametrize("identifier", TEXTS)
def test_known_texts_are_recognised(identifier: str) -> None:
    assert recognise(TEXTS[identifier]) == identifier
    assert recognise(TEXTS[identifier].upper().replace(" ", "\n  ")) == identifier


def test_every_known_licence_has_an_identifier_that_stays_itself() -> None:
    for license_text in LICENSE_TEXTS:
        assert normal_id(license_text.id) == license_text.id


def test_a_licence_that_only_mentions_another_is_not_that_one() -> None:
    agreement = TEXTS["deepseek"] + "\n" + 400 * "The licensee agrees to everything. " + "See the Gemma Terms of Use."
    assert recognise(agreement) == "deepseek"
    assert recognise(400 * "Our own house rules. " + "Compare the Llama 3 Community License Agreement.") is None


@pytest.mark.parametrize(
    ("written", "identifier"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("Llama-3.1", "llama3.1"),
        ("llama3.1-community-license", "llama3.1"),
        ("  MIT ", "mit"),
        ("qwen-license", "qwen"),
        ("Our Own License", "our-own-license"),
    ],
)
def test_names_are_written_in_many_ways(written: str, identifier: str) -> None:
    assert normal_id(written) == identifier


def test_the_text_is_the_strongest_evidence(tmp_path: Path) -> None:
    finding = found(
        tmp_path, {"LICENSE": LLAMA_31, "NOTICE": "Llama 3.1 is licensed…", "README.md": card("license: llama3.1")}
    )
    assert (finding.id, finding.evidence, finding.file) == ("llama3.1", "LicenseText", "LICENSE")
    assert finding.sha256 == hashlib.sha256(LLAMA_31.encode()).hexdigest()
    assert finding.files == ["LICENSE", "NOTICE"]


def test_the_model_card_counts_without_a_text(tmp_path: Path) -> None:
    finding = found(tmp_path, {"README.md": card("language:\n- en\nlicense: apache-2.0")})
    assert (finding.id, finding.evidence, finding.file) == ("apache-2.0", "ModelCard", "README.md")


def test_license_name_counts_where_the_card_says_other(tmp_path: Path) -> None:
    finding = found(tmp_path, {"README.md": card("license: other\nlicense_name: qwen-research")})
    assert finding.id == "qwen-research"


def test_mistakes_elsewhere_in_the_card_do_not_matter(tmp_path: Path) -> None:
    front = "tags: [a, : b\nlicense:\n- mit\nmodel-index: {{{"
    assert found(tmp_path, {"README.md": card(front)}).id == "mit"


def test_the_models_licence_is_meant_not_that_of_its_code(tmp_path: Path) -> None:
    files = {"LICENSE-CODE": MIT, "LICENSE-MODEL": TEXTS["deepseek"]}
    finding = found(tmp_path, files, model_type="deepseek_v3")
    assert (finding.id, finding.file) == ("deepseek", "LICENSE-MODEL")
    assert finding.files == ["LICENSE-CODE", "LICENSE-MODEL"]


def test_a_family_with_one_usual_licence_is_weak_evidence(tmp_path: Path) -> None:
    assert found(tmp_path, {}, model_type="olmo2").evidence == "Family"
    assert found(tmp_path, {}, stated="mit", model_type="olmo2") == LicenseFinding(id="mit", evidence="Stated")


def test_a_stated_licence_counts_when_the_files_are_silent(tmp_path: Path) -> None:
    finding = found(tmp_path, {"LICENSE": "House rules."}, stated="Llama 3.1")
    assert (finding.id, finding.evidence, finding.files) == ("llama3.1", "Stated", ["LICENSE"])


def test_nothing_found_asks_for_the_line_to_add(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {})
    assert caught.value.reason is FailureReason.LICENSE_UNKNOWN
    assert "`license: llama2`" in caught.value.message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LICENSE", "House rules: research only."),
        ("USE_POLICY.md", "Do no harm."),
        ("README.md", card("license: other")),
        ("README.md", card("license: unknown")),
        ("README.md", card("license:\nlicense_link: https://example.com/terms")),
        ("README.md", card("license: [cc-by-nc-4.0")),
        ("README.md", card("{license: cc-by-nc-4.0}")),
        ("README.md", "---\nlicense: cc-by-nc-4.0\n# A model"),
    ],
)
def test_a_familys_licence_never_stands_for_files_that_speak(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {name: text}, model_type="mixtral")
    assert caught.value.reason is FailureReason.LICENSE_UNKNOWN
    assert f"named by {name}." in caught.value.message
    assert "`license: NAME` under spec.model" in caught.value.message
    assert found(tmp_path, {name: text}, stated="cc-by-nc-4.0", model_type="mixtral").evidence == "Stated"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LICENSE-CODE", "House rules."),
        ("THIRD_PARTY_LICENSES", "Many."),
        ("README.md", "# A model\nIts license is secret."),
        ("README.md", card("tags: [a, : b")),
    ],
)
def test_a_familys_licence_counts_where_no_file_speaks_of_the_models(name: str, text: str, tmp_path: Path) -> None:
    assert found(tmp_path, {name: text}, model_type="mixtral").evidence == "Family"


def test_a_contradiction_names_both(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {"LICENSE": LLAMA_31}, stated="apache-2.0")
    assert caught.value.reason is FailureReason.LICENSE_NOT_ALLOWED
    assert "states apache-2.0" in caught.value.message
    assert "llama3.1 in LICENSE" in caught.value.message


def test_files_that_disagree_need_a_statement(tmp_path: Path) -> None:
    files = {"LICENSE": APACHE, "README.md": card("license: llama3.1")}
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, files)
    assert caught.value.reason is FailureReason.LICENSE_UNKNOWN
    assert "apache-2.0 in LICENSE, llama3.1 in README.md" in caught.value.message
    assert found(tmp_path, files, stated="llama3.1").evidence == "ModelCard"


def test_the_administrator_decides_which_licences_are_allowed(tmp_path: Path) -> None:
    settings = RunSettings(allowed_licenses=["Apache 2.0", "mit"])
    assert found(tmp_path, {"LICENSE": APACHE}, settings=settings).id == "apache-2.0"
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {"LICENSE": LLAMA_31}, settings=settings)
    assert caught.value.reason is FailureReason.LICENSE_NOT_ALLOWED
    assert "llama3.1 (LicenseText, LICENSE); the administrator allows apache-2.0, mit" in caught.value.message


def test_the_administrator_may_want_evidence(tmp_path: Path) -> None:
    settings = RunSettings(license_evidence=LicenseEvidence.FOUND)
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {}, stated="mit", settings=settings)
    assert caught.value.reason is FailureReason.LICENSE_NOT_ALLOWED
    assert "only stated in model.license" in caught.value.message
    assert found(tmp_path, {"LICENSE": MIT}, stated="mit", settings=settings).evidence == "LicenseText"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no front matter",
        "---\nlicense: mit",
        "---\n: : :\n- [\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: " + "[" * 100_000 + "\n---\n",
        "---\n&a [*a]\n---\n",
        "---\nlicense: [1, {a: b}]\n---\n",
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n",
    ],
)
def test_a_damaged_card_says_nothing(text: str, tmp_path: Path) -> None:
    assert not isinstance(license_fields(text).get("license"), str)
    with pytest.raises(CloisterError) as caught:
        found(tmp_path, {"README.md": text})
    assert caught.value.reason is FailureReason.LICENSE_UNKNOWN
