"""Who sent a request: the generated password, or a token that the store knows by its hash.

Either is taken as a bearer token, or as the password of HTTP Basic: the password with the user
`admin`, a token with any user name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping

from stoker.placement.token_record import TokenRecord

USER = "admin"
# Who has the password.
ADMIN = TokenRecord("admin", "the generated password", "", "admin", "manage")
_TOKEN = re.compile(r"stk_([0-9a-f]{12})_[-_A-Za-z0-9]{43}")


def new_token() -> tuple[str, str]:
    """A token id, and the token that carries it and 256 random bits."""
    token_id = secrets.token_hex(6)
    return token_id, f"stk_{token_id}_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Credentials:
    """Compares in constant time what a client offers with the password and the tokens."""

    def __init__(
        self, password: str, tokens: Callable[[], Mapping[str, TokenRecord]] = dict
    ) -> None:
        self._password = password.encode()
        self._tokens = tokens

    def caller(self, authorization: str) -> TokenRecord | None:
        """Whose value of an Authorization header this is; None if nobody's."""
        scheme, _, payload = authorization.partition(" ")
        user, offered = USER, payload.strip()
        if scheme.lower() == "basic":
            user, offered = _basic(offered)
        elif scheme.lower() != "bearer":
            return None
        named = _TOKEN.fullmatch(offered)
        if named is not None:
            record = self._tokens().get(named[1])
            known = record is not None and hmac.compare_digest(digest_of(offered), record.digest)
            return record if known else None
        bare = offered.encode("utf-8", "replace")
        matches = hmac.compare_digest(bare, self._password)
        return ADMIN if matches and user == USER else None

    def is_ours(self, authorization: str) -> bool:
        """Whether no function may see this value of an Authorization header."""
        return self.caller(authorization) is not None

    def signature(self, header: str, payload: bytes) -> bool:
        """Whether `header` is `sha256=` and the HMAC of `payload` under the password."""
        expected = "sha256=" + hmac.new(self._password, payload, hashlib.sha256).hexdigest()
        return hmac.compare_digest(header.strip().encode("utf-8", "replace"), expected.encode())


def _basic(payload: str) -> tuple[str, str]:
    """User and password of HTTP Basic; both empty for what is none."""
    try:
        pair = base64.b64decode(payload, validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    user, _, password = pair.partition(":")
    return user, password
