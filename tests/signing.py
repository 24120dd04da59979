"""Key pairs and signatures to test with: ours, and model-signing's own command as other people run it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hotshelf_daemon.provenance import PublicKey, SigningKey, sign
from tests import objects
from tests.servers.child import clean_environment

#: model-signing 1.1 imports pyOpenSSL for certificates and does not ask for it. Were it installed, botocore would load it into
#: every daemon of the tests, as no daemon elsewhere does; with keys nothing of it is used.
COMMAND = (
    "import sys; from unittest.mock import MagicMock; sys.modules['OpenSSL'] = MagicMock();"
    "from model_signing._cli import main; main(prog_name='model_signing')"
)


@dataclass(frozen=True)
class Pair:
    """Two PEM files; the private one is encrypted when it was made with a password."""

    private: pathlib.Path
    public: pathlib.Path

    @property
    def key(self) -> SigningKey:
        return SigningKey.load(str(self.private))

    @property
    def trusted(self) -> PublicKey:
        return PublicKey.load(str(self.public), "keys")

    def sign(self, tree: objects.Tree) -> bytes:
        return sign(objects.manifest_of(tree), "model", self.key)


def pair(folder: pathlib.Path, name: str, *, curve: type[ec.EllipticCurve] = ec.SECP256R1, password: str | None = None) -> Pair:
    """A new pair as FOLDER/NAME.pem and FOLDER/NAME.pub."""
    key = ec.generate_private_key(curve())
    pem, encrypted = serialization.Encoding.PEM, serialization.NoEncryption()
    hidden = serialization.BestAvailableEncryption(password.encode()) if password is not None else encrypted
    made = Pair(folder / f"{name}.pem", folder / f"{name}.pub")
    made.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
    made.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return made


def model_signing(*words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """The `model_signing` command of OpenSSF Model Signing. It needs no network for keys."""
    argv = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=120)


def sign_as_others_do(model: pathlib.Path, signature: pathlib.Path, pair_: Pair) -> bytes:
    """What `model_signing sign key` writes for a folder or a file."""
    done = model_signing("sign", "key", model, "--signature", signature, "--private_key", pair_.private)
    assert done.returncode == 0, done.stdout + done.stderr
    return signature.read_bytes()


def others_verify(model: pathlib.Path, signature: pathlib.Path, pair_: Pair) -> bool:
    done = model_signing("verify", "key", model, "--signature", signature, "--public_key", pair_.public)
    assert done.returncode == 0 or "Verification failed" in done.stderr, done.stderr
    return done.returncode == 0
