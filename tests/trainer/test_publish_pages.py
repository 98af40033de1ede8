"""The pages for people: report.html and the model card."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cloister_trainer.storage import Storage, open_storage
from support.staged_run import published_folder, stage


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_needs_nothing_from_elsewhere_and_runs_no_script(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)

    html = (published_folder(staged, storage, tmp_path / "scratch") / "report.html").read_text()

    report = Elements(html)
    policies = [attrs["content"] for tag, attrs in report.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none';")
    assert not {"script", "link", "img", "iframe", "object", "form", "b"} & {tag for tag, _ in report.tags}
    for tag, attrs in report.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert all(
            str(value).startswith("#") for name, value in attrs.items() if name in ("src", "href", "xlink:href")
        ), tag
    assert html.count("<svg") == 4
    assert "<script>alert(1)</script>" in report.text, "samples are shown as text"
    assert "18 of 20" in report.text
    assert "Segment isolation" in report.text


def test_the_model_card_has_front_matter_and_the_lines_that_serve_the_adapter(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(
        tmp_path.as_uri(), tiny_llama, tiny_adapter, provenance={"requestedBy": "Eve | <img src=x> `x`\n# Title"}
    )

    card = (published_folder(staged, storage, tmp_path / "scratch") / "README.md").read_text()

    front = YAML(typ="safe").load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "tiny-llama"
    assert front["library_name"] == "peft"
    assert "--max-lora-rank 8 --lora-modules contracts=ADAPTER" in card
    assert "| 0 of 20 | 18 of 20 |" in card
    assert "Eve \\| &lt;img src=x&gt; \\`x\\` # Title" in card
