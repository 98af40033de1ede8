"""The signature of the published folder: an OpenSSF model-signing bundle made with the namespace's own EC key.

`model_signing` and `cryptography` are imported where they are used: the first takes seconds to load, and most runs are
not signed. Digests are handed to it, so that a merged model need not lie on the local disk to be signed or verified;
the bundle is the same that the package's own command line makes and verifies:

    model_signing verify key FOLDER --signature FOLDER/model.sig --public_key public.pem
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.records import FileDigest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from model_signing.hashing import Config

SIGNATURE_FILE = "model.sig"
UNSIGNED_FILES = ("manifest.json", SIGNATURE_FILE)
"""Written after the signature, or the signature itself."""
SIGNATURE_METHOD = "model-signing, EC key, sha256 by file"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE_KEY = "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out private.pem"


@dataclass(frozen=True)
class SigningKey:
    """A private key that was loaded once and can sign."""

    path: Path
    public: PublicKey


@dataclass(frozen=True)
class PublicKey:
    """What a signature is verified with."""

    pem: bytes
    fingerprint: str
    """sha256 of the key's DER SubjectPublicKeyInfo, hexadecimal."""


class SignatureMismatchError(Exception):
    """The signature does not belong to the key or to the files; the message says which."""


def load_signing_key(path: Path) -> SigningKey:
    """The private key at `path`.

    Raises CloisterError(SigningFailed) when it is missing, encrypted, no PEM private key, or not on a supported curve.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise _failed(f"The signing key {path} cannot be read ({error.strerror}). {MAKE_KEY}") from error
    except TypeError as error:
        raise _failed(
            f"The signing key {path} is encrypted, and nobody is there to type its password. Store it decrypted: "
            f"openssl ec -in {path.name} -out private.pem"
        ) from error
    except ValueError as error:
        raise _failed(f"The signing key {path} is not a private key in PEM format. {MAKE_KEY}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        found = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
        raise _failed(f"The signing key {path} is {found}; expected an EC key on P-256, P-384 or P-521. {MAKE_KEY}")
    return SigningKey(path, _public_key(key.public_key()))


def load_public_key(path: Path) -> PublicKey:
    """The public key at `path`.

    Raises CloisterError(SigningFailed) when it holds no EC public key in PEM format.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    hint = "Take it from the private key with: openssl ec -in private.pem -pubout -out public.pem"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise _failed(f"The public key {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise _failed(f"{path} is not a public key in PEM format. {hint}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _failed(f"The public key {path} is {type(key).__name__}; expected an EC key. {hint}")
    return _public_key(key)


def sign_files(key: SigningKey, name: str, files: Sequence[FileDigest]) -> bytes:
    """A sigstore bundle that signs `files` (name and sha256) under the subject `name`."""
    from model_signing import signing

    with tempfile.TemporaryDirectory(prefix="cloister-sign-") as scratch:
        bundle = Path(scratch) / SIGNATURE_FILE
        config = signing.Config().use_elliptic_key_signer(private_key=key.path)
        config.set_hashing_config(_known_digests(files)).sign(name, bundle)
        return bundle.read_bytes()


def verify_signature(signature: bytes, public_key: PublicKey, files: Sequence[FileDigest]) -> None:
    """Check that `signature` was made with the key that belongs to `public_key`, over exactly `files`.

    Raises SignatureMismatchError.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    with tempfile.TemporaryDirectory(prefix="cloister-sign-") as scratch:
        bundle, key = Path(scratch) / SIGNATURE_FILE, Path(scratch) / "public.pem"
        bundle.write_bytes(signature)
        key.write_bytes(public_key.pem)
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        try:
            config.set_hashing_config(_known_digests(files)).verify("folder", bundle)
        except InvalidSignature as error:
            raise SignatureMismatchError("the signature was not made with this key, or was changed") from error
        except (ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split()).removeprefix("Signature mismatch: ").rstrip(" .")
            raise SignatureMismatchError(said) from error


def _known_digests(files: Sequence[FileDigest]) -> Config:
    """A hashing configuration that answers with digests already taken, in place of reading files."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    class KnownDigests(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: str, *, files_to_hash: object = None) -> manifest.Manifest:
            assert files_to_hash is None
            items = [
                manifest.FileManifestItem(path=Path(file.name), digest=Digest("sha256", bytes.fromhex(file.sha256)))
                for file in files
            ]
            kind = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            serialization = manifest.SerializationType.from_args({**kind, "ignore_paths": list(UNSIGNED_FILES)})
            return manifest.Manifest(Path(model_path).name, items, serialization)

    return KnownDigests()


def _public_key(key: EllipticCurvePublicKey) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(pem, hashlib.sha256(der).hexdigest())


def _failed(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.SIGNING_FAILED, sentence)
