"""Signing keys that cannot sign: each is refused with what to do, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_cluster import Signing
from cloister_trainer.publish.check import load_key
from cloister_trainer.publish.sign import load_public_key, load_signing_key

SECRET = b"correct horse"


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True)
class Bad:
    name: str
    content: Callable[[], bytes]
    said: str


BAD_KEYS = [
    Bad("encrypted", lambda: pem(ec.generate_private_key(ec.SECP256R1()), SECRET), "is encrypted"),
    Bad("not a key", lambda: b"ssh-ed25519 AAAA", "is not a private key in PEM format"),
    Bad("RSA", lambda: pem(rsa.generate_private_key(65537, 2048)), "expected an EC key on P-256"),
    Bad("other curve", lambda: pem(ec.generate_private_key(ec.SECP256K1())), "is secp256k1; expected"),
]


@pytest.mark.parametrize("bad", BAD_KEYS, ids=lambda bad: bad.name)
def test_a_bad_key_is_refused(bad: Bad, tmp_path: Path) -> None:
    path = tmp_path / "private.pem"
    path.write_bytes(bad.content())

    with pytest.raises(CloisterError) as refused:
        load_signing_key(path)

    assert refused.value.reason is FailureReason.SIGNING_FAILED
    assert bad.said in refused.value.message
    assert "openssl" in refused.value.message
    assert str(path) in refused.value.message


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CloisterError, match="cannot be read \\(No such file") as refused:
        load_signing_key(tmp_path / "private.pem")

    assert refused.value.reason is FailureReason.SIGNING_FAILED


def test_a_job_that_asks_for_a_signature_needs_a_key() -> None:
    with pytest.raises(CloisterError, match="--signing-key") as refused:
        load_key(Signing(secret_name="legal-signing"), None)

    assert refused.value.reason is FailureReason.SIGNING_FAILED
    assert load_key(None, None) is None


def test_private_and_public_key_have_one_fingerprint(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "private.pem").write_bytes(pem(key))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)

    assert load_signing_key(tmp_path / "private.pem").public == load_public_key(tmp_path / "public.pem")
    with pytest.raises(CloisterError, match="not a public key"):
        load_public_key(tmp_path / "private.pem")
