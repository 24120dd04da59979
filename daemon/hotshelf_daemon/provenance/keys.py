"""Elliptic-curve keys in PEM files. The only module that imports cryptography, and not before there is a key to read.

A key is known by its id: the sha256 of its public half in PEM, which is the hint in Model Signing's bundles. Nothing of a
key file's content is ever part of a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from hotshelf_shared.errors import BadConfiguration, HotshelfError, InvalidRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_KEY_BYTES = 64 << 10
#: Those that Model Signing knows.
CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE_PAIR = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One that may vouch."""

    id: str
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str, setting: str) -> Self:
        """Raises BadConfiguration naming `setting`."""

        def refusal(why: str) -> HotshelfError:
            return BadConfiguration(f"{setting}: {path} {why}", hint=f"Name a PEM file with a public key: {_MAKE_PAIR}")

        data = _read(path, refusal)
        if b"PRIVATE KEY" in data:
            raise refusal("holds a private key, which only who signs should have")
        _need_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            raise refusal("holds no public key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
            raise refusal("holds no elliptic-curve key on P-256, P-384 or P-521")
        return cls.of(key)

    @classmethod
    def of(cls, key: ec.EllipticCurvePublicKey) -> Self:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return cls(hashlib.sha256(pem).hexdigest(), key)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._key.verify(signature, data, ec.ECDSA(_hash_of(self._key.curve)))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One that signs; `public` is what verifies it, `path` where it lies."""

    public: PublicKey
    path: str
    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str, password: str | None = None) -> Self:
        """`password` is used when the file is encrypted. Raises InvalidRequest, BadConfiguration (no cryptography)."""

        def refusal(why: str) -> HotshelfError:
            return InvalidRequest(f"cannot sign: {path} {why}", hint=f"Name a PEM file with a private key: {_MAKE_PAIR}")

        data = _read(path, refusal)
        encrypted = b"ENCRYPTED" in data
        if encrypted and not password:
            raise InvalidRequest(f"the key {path} is encrypted", hint="Set HOTSHELF_SIGN_PASSWORD_FILE to its password's file.")
        _need_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(data, password.encode() if encrypted and password else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise refusal("does not open with that password" if encrypted else "holds no private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
            raise refusal("holds no elliptic-curve key on P-256, P-384 or P-521")
        return cls(PublicKey.of(key.public_key()), path, key)

    def sign(self, data: bytes) -> bytes:
        """The same bytes for the same data (RFC 6979): what is pushed again is what is there."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec

        hashed = _hash_of(self._key.curve)
        try:
            return self._key.sign(data, ec.ECDSA(hashed, deterministic_signing=True))
        except UnsupportedAlgorithm:  # OpenSSL before 3.2: another signature each time, and each as good
            return self._key.sign(data, ec.ECDSA(hashed))


def _read(path: str, refusal: Callable[[str], HotshelfError]) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_KEY_BYTES:
        raise refusal("is too large to be a key")
    return data


def _hash_of(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}[curve.name]


def _need_cryptography() -> None:
    """Raises BadConfiguration saying what to install."""
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as missing:
        raise BadConfiguration(
            "signatures need cryptography, which is not installed", hint="pip install 'hotshelf[sign]'"
        ) from missing
