"""Secrets at rest: only who has the cluster's token can read one from the store.

The key is derived from the token (HKDF-SHA256). AES-256-GCM binds a value to its place: who can
write to the store but has no token cannot pass one secret off as another.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stoker.placement.errors import StartFailed

SECRET_BYTES_MAXIMUM = 64 * 1024
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """`sealed` is the base64 of nonce and ciphertext."""

    name: str
    namespace: str
    sealed: str

    @property
    def path(self) -> str:
        return path_of(self.namespace, self.name)


def path_of(namespace: str, name: str) -> str:
    return f"/secrets/{namespace}/{name}"


class Seal:
    """Encrypts secrets for the store, and decrypts them."""

    def __init__(self, cluster_token: str) -> None:
        derived = HKDF(SHA256(), length=32, salt=None, info=b"stoker secrets")
        self._cipher = AESGCM(derived.derive(cluster_token.encode()))

    def close(self, namespace: str, name: str, value: bytes) -> SecretRecord:
        nonce, place = os.urandom(_NONCE_BYTES), path_of(namespace, name).encode()
        sealed = nonce + self._cipher.encrypt(nonce, value, place)
        return SecretRecord(name, namespace, base64.b64encode(sealed).decode())

    def open(self, record: SecretRecord) -> bytes:
        """The value; StartFailed if the record was not sealed for its place with this token."""
        try:
            sealed = base64.b64decode(record.sealed, validate=True)
            nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._cipher.decrypt(nonce, ciphertext, record.path.encode())
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise StartFailed(
                f"Expected the secret {record.name} of {record.namespace} to be sealed with this "
                "cluster's token, found that it is not.",
                "Update the secret, or give every process the same STOKER_CLUSTER_TOKEN_FILE.",
            ) from error
