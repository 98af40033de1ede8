"""llama.cpp for tests: the library that the source package llama-cpp-python holds, its bindings, and its converters.

Built once, into the user's cache, with a C++ compiler from the PATH and nothing else of the machine.

    python -m support.llama_cpp     builds it when it is missing (10 to 20 minutes on two cores), and prints the folder
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
SOURCE_LOCK, TOOLS_LOCK = REQUIREMENTS / "llama.txt", REQUIREMENTS / "llama-build.txt"
RECIPE = 1
"""Part of the folder's name; counted up when the build changes, so that no older result is taken for a new one."""
CONVERTERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
"""What llama.cpp's converters are made of."""
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",  # the libraries move together
    "-DGGML_NATIVE=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
)

# Runs apart from the tests: torch and llama.cpp each bring an OpenMP library.
_ANSWER = """
import json, sys
from llama_cpp import Llama

asked = json.load(sys.stdin)
llama = Llama(asked["base"], lora_path=asked["adapter"], lora_scale=asked["scale"], n_ctx=1024, verbose=False)
answers = []
for messages in asked["conversations"]:
    answer = llama.create_chat_completion(messages, temperature=0, max_tokens=asked["tokens"])
    answers.append(answer["choices"][0]["message"]["content"])
json.dump(answers, sys.stdout)
"""

# Takes the tokens' ids, so that a tiny model needs no tokenizer that llama.cpp knows. The cache keeps float32.
_LOGITS = """
import sys
import numpy
from llama_cpp import Llama

base, adapter, out, *tokens = sys.argv[1:]
cache = {"type_k": 0, "type_v": 0}
llama = Llama(base, lora_path=adapter or None, n_ctx=64, logits_all=True, verbose=False, n_threads=1, **cache)
llama.eval([int(token) for token in tokens])
numpy.save(out, llama.scores[: len(tokens)])
"""
_CONVERT_WITHOUT_VOCABULARY = """
import runpy, sys

folder, vocabulary, *sys.argv = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
import conversion

model_class = conversion.get_model_class

def set_vocab(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(int(vocabulary))

def without_vocabulary(*arguments, **named):
    found = model_class(*arguments, **named)
    found.set_vocab = set_vocab
    return found

conversion.get_model_class = without_vocabulary
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_COUNT = "import sys, gguf; print(len(gguf.GGUFReader(sys.argv[1]).tensors))"


def folder() -> Path:
    """Where it lies when it is built: `python` with its packages, `lib`, and `llama.cpp` with the converters."""
    locked = re.search(r"^llama-cpp-python==(\S+)", SOURCE_LOCK.read_text(), re.MULTILINE)
    assert locked, f"{SOURCE_LOCK} names no llama-cpp-python"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cloister" / f"llama-cpp-{locked[1]}-{RECIPE}"


def convert(script: str, *arguments: str | Path) -> None:
    """Run one of llama.cpp's converters in this Python, which has torch and transformers."""
    _python(folder() / "llama.cpp" / script, *arguments)


def convert_without_vocabulary(model: Path, vocabulary: int, file: Path) -> None:
    """The model in `model` as a GGUF file with its weights alone: those of tiny models have no known tokenizer.

    Its tokenizer.json is written: llama.cpp cuts Gemma 3's embeddings to as many rows as that has tokens.
    """
    tokens = {"vocab": {str(token): token for token in range(vocabulary)}}
    (model / "tokenizer.json").write_text(json.dumps({"model": tokens, "added_tokens": []}))
    source = folder() / "llama.cpp"
    arguments = (source, vocabulary, source / "convert_hf_to_gguf.py", model, "--outtype", "f32", "--outfile", file)
    _python("-c", _CONVERT_WITHOUT_VOCABULARY, *arguments)


def count_tensors(file: Path) -> int:
    """Tensors in a GGUF file."""
    return int(_python("-c", _COUNT, file))


def logits(base: Path, adapter: Path | None, tokens: Sequence[int]) -> NDArray[np.float32]:
    """llama.cpp's logits [tokens, vocabulary]; all files are GGUF."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        _python("-c", _LOGITS, base, adapter or "", out, *tokens)
        found: NDArray[np.float32] = np.load(out)
    return found


def _python(*arguments: object, given: str | None = None) -> str:
    """What Python prints, run apart with llama.cpp's packages; its last words as an AssertionError if it fails."""
    packages = os.pathsep.join(map(str, (folder() / "python", folder() / "llama.cpp" / "gguf-py")))
    environment = os.environ | {"PYTHONPATH": packages, "LLAMA_CPP_LIB_PATH": str(folder() / "lib")}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def answers(
    base: Path, adapter: Path | None, conversations: Sequence[Any], *, tokens: int, scale: float = 1.0
) -> list[str]:
    """llama.cpp's greedy answers, with the chat template of the base's file; all files are GGUF."""
    asked = {
        "base": str(base),
        "adapter": str(adapter) if adapter else None,
        "scale": scale,
        "conversations": list(conversations),
        "tokens": tokens,
    }
    found: list[str] = json.loads(_python("-c", _ANSWER, given=json.dumps(asked)))
    return found


def build_missing() -> Path:
    """The folder, after building it when it is missing: beside its place, then renamed, so that it is always whole."""
    made = folder()
    if made.is_dir():
        return made
    print(f"Building {made.name} from its source (10 to 20 minutes on two cores, once) ...", file=sys.stderr)
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{made.name}-", dir=made.parent) as scratch:
        result = _build(Path(scratch))
        try:
            result.rename(made)
        except OSError:
            # Another process was quicker: its folder is as good as ours.
            if not made.is_dir():
                raise
    return made


def _build(scratch: Path) -> Path:
    tools, result = scratch / "tools", scratch / "result"
    _run(sys.executable, "-m", "venv", tools)
    pip = (tools / "bin" / "python", "-m", "pip", "--quiet")
    _run(*pip, "install", "--require-hashes", "-r", TOOLS_LOCK)
    fetch = ("--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python", "--require-hashes")
    _run(*pip, "download", *fetch, "--dest", scratch, "-r", SOURCE_LOCK)
    (package,) = scratch.glob("llama_cpp_python-*.tar.gz")
    _run("tar", "--extract", "--gzip", "--file", package, "--directory", scratch)
    unpacked = scratch / package.name.removesuffix(".tar.gz")
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(result / "python")
    shutil.copytree(unpacked / "llama_cpp", result / "python" / "llama_cpp")
    source = unpacked / "vendor" / "llama.cpp"
    for name in CONVERTERS:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        (result / "llama.cpp").mkdir(exist_ok=True)
        copy(source / name, result / "llama.cpp" / name)
    cmake, ninja, build = tools / "bin" / "cmake", tools / "bin" / "ninja", scratch / "build"
    _run(cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *CMAKE_OPTIONS, "-S", source, "-B", build)
    _run("nice", cmake, "--build", build, "--target", "llama")
    shutil.copytree(build / "bin", result / "lib", symlinks=True)
    return result


def _run(*command: str | Path) -> None:
    """RuntimeError with the end of what the command said when it fails."""
    ended = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{ended.stdout[-4000:]}")


if __name__ == "__main__":
    print(build_missing())
