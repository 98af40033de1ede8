"""`make quickstart` as a stranger runs it, in a folder of its own, and what it says can be done afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.smollm2 import cached_folder

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
ORDER = "Hi, please send six crates of oak panels to hall 3 by Thu. Ada"
ANSWER = {"item": "oak panels", "quantity": 6, "unit": "crate", "to": "hall 3", "day": "Thursday"}

pytestmark = pytest.mark.timeout(1200)


class Quickstart:
    """scripts/quickstart.py running in a folder, with its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.log"
        command = [sys.executable, "scripts/quickstart.py", "--folder", str(folder / "quickstart")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)

    def wait_for(self, text: str) -> None:
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    finished = python("scripts/quickstart.py", "--folder", str(folder))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_it_goes_from_about_nothing_to_nine_in_ten(output: str, folder: Path) -> None:
    match = json.loads((folder / "adapter" / "checks.json").read_text())["exactMatch"]
    assert match["rows"] == 50
    assert match["before"] <= 2
    assert match["after"] >= 45
    assert f"before {match['before']} of 50, after {match['after']} of 50" in output


def test_it_says_where_everything_is(output: str, folder: Path) -> None:
    assert "Adapter   s3://adapters/orders/" in output
    assert f"open {folder}/adapter/report.html" in output
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json", "report.html", "LICENSE"):
        assert (folder / "adapter" / name).stat().st_size > 0


def test_the_adapter_answers_an_order_in_stock_peft(output: str, folder: Path) -> None:
    assert "scripts/try_adapter.py" in output
    tried = python("scripts/try_adapter.py", "--adapter", str(folder / "adapter"), ORDER)
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout) == ANSWER


def test_the_published_folder_reloads_in_stock_peft_as_it_was_trained(output: str, folder: Path) -> None:
    """train proved that the staged tensors are the live ones; here both ways of loading give the same logits."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from cloister_api.spec_training import Lora, Precision
    from cloister_trainer.train.attention import stock_attention
    from cloister_trainer.train.lora import add_lora, load_adapter_state
    from cloister_trainer.train.model import TrainingModule, load_base
    from cloister_trainer.train.targets import targets_in

    base, adapter, lora = cached_folder(), folder / "adapter", Lora()
    checks = json.loads((adapter / "checks.json").read_text())
    assert checks["readBackEqual"] is True
    model = load_base(base, Precision.FP32, 128)
    trained = TrainingModule(add_lora(model, targets_in(base, ["model.safetensors"], lora), lora, 1), Precision.FP32)
    load_adapter_state(trained.model, load_file(adapter / "adapter_model.safetensors"), str(adapter))
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    ids = torch.arange(100, 164)[None]
    with torch.no_grad(), stock_attention(trained.base):
        ours = trained.eval().model(input_ids=ids, use_cache=False).logits
        theirs = stock.eval()(input_ids=ids, use_cache=False).logits
    assert torch.equal(ours, theirs)


@pytest.mark.soak
def test_interrupted_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = Quickstart(tmp_path)
    try:
        first.wait_for('"event":"progress","step":4,')
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait() == 130
    finally:
        first.process.terminate()
        first.process.wait()
    assert "run the same command again to go on" in first.log.read_text()

    second = Quickstart(tmp_path)
    try:
        assert second.process.wait() == 0, second.log.read_text()
    finally:
        second.process.terminate()
        second.process.wait()
    output = second.log.read_text()
    assert "Prepared earlier; going on from there." in output
    assert '"event":"progress","step":2,' not in output
    assert "Held-out orders answered exactly" in output
