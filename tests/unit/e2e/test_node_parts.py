"""Parts of the node that need no node: images from folders, one node at a time, what a kernel's line tells."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from e2e.cluster import machine, mounts
from e2e.cluster.images import fill_with_program, pack
from e2e.cluster.machine import MachineError, MachineLock, lock_is_held
from e2e.cluster.refusals import LINE
from e2e.cluster.site import Site


def test_a_folder_becomes_an_image_of_one_layer_owned_by_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tool").write_text("#!/bin/sh\n")
    (root / "bin" / "tool").chmod(0o755)
    (root / "bin" / "alias").symlink_to("tool")
    pack(root, "localhost/x:1", tmp_path / "image.tar", {"Entrypoint": ["/bin/tool"]})
    with tarfile.open(tmp_path / "image.tar") as archive:
        (manifest,) = json.load(read(archive, "manifest.json"))
        assert (manifest["RepoTags"], manifest["Layers"]) == (["localhost/x:1"], ["layer.tar"])
        config = json.load(read(archive, manifest["Config"]))
        layer = read(archive, "layer.tar").read()
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
        assert config["config"]["Entrypoint"] == ["/bin/tool"]
        with tarfile.open(fileobj=read(archive, "layer.tar")) as files:
            found = {each.name: each for each in files}
    assert sorted(found) == ["bin", "bin/alias", "bin/tool"]
    assert found["bin/alias"].linkname == "tool"
    assert (found["bin/tool"].mode, found["bin/tool"].uid) == (0o755, 0)


def test_the_same_folder_is_the_same_layer(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
        pack(tmp_path / name, "localhost/x:1", tmp_path / f"{name}.tar", {})
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_program_runs_with_nothing_but_what_was_packed_with_it(tmp_path: Path) -> None:
    fill_with_program(tmp_path, Path(shutil.which("true") or ""))
    loader = next(tmp_path.glob("lib*/**/ld-linux*"))
    libraries = ":".join({str(path.parent) for path in tmp_path.rglob("*.so*")})
    assert subprocess.run([loader, "--library-path", libraries, tmp_path / "true"], check=False).returncode == 0


def test_there_is_one_node_and_it_says_who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(machine, "_other_kubernetes", lambda: None)
    first = MachineLock()
    assert not lock_is_held()
    first.acquire(Site(tmp_path / "first"))
    assert lock_is_held()
    with pytest.raises(MachineError, match=r"runs on this machine already \(process \d+, folder .*first\)"):
        MachineLock().acquire(Site(tmp_path / "second"))
    first.release()
    assert not lock_is_held()
    second = MachineLock()
    second.acquire(Site(tmp_path / "second"))
    second.release()


def test_a_run_folder_too_deep_for_sockets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "check_rights", lambda: None)
    with pytest.raises(MachineError, match="is too long for the sockets in it: choose a shorter one"):
        machine.check_machine(Site(tmp_path / ("deep" * 30)))


def test_who_is_not_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError, match=r"A node needs root .* run this as root"):
        machine.check_machine(Site(tmp_path))


def test_folders_that_were_made_go_again_unless_somebody_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [tmp_path / name for name in ("there", "made", "used")]
    targets[0].mkdir()
    monkeypatch.setattr(mounts, "BUILT_IN", tuple(map(str, targets)))
    site = Site(tmp_path / "node")
    site.folder.mkdir()
    mounts.make_targets(site)
    (targets[2] / "file").touch()
    mounts.remove_targets(site)
    assert [target.exists() for target in targets] == [True, False, True]


def test_a_refusal_is_read_from_the_kernels_line() -> None:
    start = "4,1,783,-;cloister-refused IN=veth1 OUT=veth2 MAC=ae:bc SRC=10.244.0.2 DST=10.244.0.3 LEN=60 TTL=64 DF "
    tcp = LINE.search(f"{start}PROTO=TCP SPT=38090 DPT=81 WINDOW=64240 SYN URGP=0")
    assert tcp
    assert [tcp[name] for name in ("source", "target", "protocol", "port")] == ["10.244.0.2", "10.244.0.3", "TCP", "81"]
    ping = LINE.search(f"{start}PROTO=ICMP TYPE=8 CODE=0")
    assert ping
    assert (ping["protocol"], ping["port"]) == ("ICMP", None)
    assert LINE.search("4,1,783,-;another IN=veth1 OUT= SRC=1.2.3.4 DST=1.2.3.5 PROTO=TCP") is None


def read(archive: tarfile.TarFile, name: str):  # type: ignore[no-untyped-def]
    found = archive.extractfile(name)
    assert found
    return found
