"""Routing by host: `name.namespace.domain` is a function, as its URL in Knative has it."""

from __future__ import annotations

import re

from stoker.placement.errors import BadRequest

_LABEL = "[a-z0-9](?:[-_a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
DOMAIN_CHARACTERS_MAXIMUM = 200


def valid_domain(text: str) -> str:
    """The domain in small letters, empty for none; BadRequest if it cannot be one."""
    domain = text.strip().rstrip(".").lower()
    if domain and (len(domain) > DOMAIN_CHARACTERS_MAXIMUM or not _DOMAIN.fullmatch(domain)):
        raise BadRequest(
            f"Expected a domain such as fn.example.com in STOKER_DOMAIN, found {text!r:.100}.",
            "Correct the variable, or leave it away.",
        )
    return domain


class Hosts:
    """Functions by their host below `domain`."""

    def __init__(self, domain: str) -> None:
        self._pattern = re.compile(
            rf"({_LABEL}\.{_LABEL})\.{re.escape(domain)}\.?(?::[0-9]{{1,5}})?"
        )

    def function_of(self, host: str) -> str | None:
        """`name.namespace` of the function whose host this is, None for any other host."""
        matched = self._pattern.fullmatch(host.lower())
        return matched[1] if matched else None
