"""Tokens of clients, as the store keeps them: what each may do, and never the token itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Scope = Literal["admin", "namespace", "function"]
Permission = Literal["invoke", "manage"]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of requests, at one gateway; None is no limit. What is over waits, at most `queue_length`."""

    requests_per_second: float | None = None
    concurrency: int | None = None
    queue_length: int = 100


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """`digest` is the SHA-256 of the whole token: it was drawn at random and cannot be guessed.

    `namespace` is empty in the scope `admin`; `function` is a name, in the scope `function` alone.
    Who may manage may invoke too.
    """

    token_id: str
    name: str
    digest: str = field(repr=False)
    scope: Scope
    permission: Permission
    namespace: str = ""
    function: str = ""
    limits: RequestLimits = RequestLimits()
    created_at: float = 0.0

    @property
    def path(self) -> str:
        return f"/tokens/{self.token_id}"

    @property
    def administers(self) -> bool:
        """Whether it may do everything."""
        return self.scope == "admin" and self.permission == "manage"

    def covers(self, namespace: str, function: str | None) -> bool:
        """Whether its scope holds this function, or with None all functions of the namespace."""
        if self.scope == "admin":
            return True
        whole = self.scope == "namespace"
        return self.namespace == namespace and (whole or self.function == function)
