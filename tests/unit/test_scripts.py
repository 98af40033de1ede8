"""What the scripts say before they do anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("version", ["(3, 10, 9)", "(3, 14, 0)"])
def test_setup_names_the_pythons_that_it_takes(version: str, tmp_path: Path) -> None:
    """A whole setup would take minutes: the checkout is a copy of what setup reads before it does anything."""
    checkout = tmp_path / "checkout"
    for folder in ("scripts", "requirements", "crds", "operator", "trainer"):
        (checkout / folder).mkdir(parents=True)
        for file in (ROOT / folder).glob("*"):
            if file.suffix in (".sh", ".txt", ".toml"):
                (checkout / folder / file.name).write_bytes(file.read_bytes())
    python, uv = tmp_path / "python", tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\nexit 0\n")
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = {version}; $*"\n')
    for program in (python, uv):
        program.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "PATH": f"{uv.parent}:{os.environ['PATH']}"}
    command = ["bash", str(checkout / "scripts" / "setup.sh")]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"PYTHON={python} is no Python 3.11, 3.12 or 3.13" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_the_base_model_answers_without_any_adapter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import try_adapter

    monkeypatch.setattr(try_adapter, "answer", lambda order, adapter: f"{order} with {adapter}")
    monkeypatch.setattr(sys, "argv", ["try_adapter.py", "six crates", "--adapter", str(tmp_path), "--without"])
    assert try_adapter.main() == 0
    assert capsys.readouterr().out == "six crates with None\n"
    monkeypatch.setattr(sys, "argv", ["try_adapter.py", "six crates", "--adapter", str(tmp_path)])
    with pytest.raises(SystemExit):
        try_adapter.main()
    assert f"there is no adapter in {tmp_path}" in capsys.readouterr().err
