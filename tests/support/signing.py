"""Keys that sign and verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True)
class KeyPair:
    """Files in PEM format."""

    private: Path
    public: Path


def make_keys(folder: Path) -> KeyPair:
    """A new pair of EC keys in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = KeyPair(folder / "private.pem", folder / "public.pem")
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair
