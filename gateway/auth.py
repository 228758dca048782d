"""Who may use the control routes (HTTP Basic) and the OpenAI routes (the password as bearer)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

USER = "admin"


class Credentials:
    """Compares in constant time what a client offers with the one password."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()

    def basic(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is user and password in Basic form."""
        scheme, _, payload = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            offered = base64.b64decode(payload.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(offered, USER.encode() + b":" + self._password)

    def bearer(self, authorization: str) -> bool:
        """Whether it is the password as a bearer token."""
        scheme, _, payload = authorization.partition(" ")
        offered = payload.strip().encode("utf-8", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(offered, self._password)

    def either(self, authorization: str) -> bool:
        return self.basic(authorization) or self.bearer(authorization)

    def signature(self, header: str, payload: bytes) -> bool:
        """Whether `header` is `sha256=` and the HMAC of `payload` under the password."""
        expected = "sha256=" + hmac.new(self._password, payload, hashlib.sha256).hexdigest()
        return hmac.compare_digest(header.strip().encode("utf-8", "replace"), expected.encode())
