"""Requests drawn from the OpenAPI document: no failure of ours, no answer that it does not tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from aiohttp import web as server
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from harness import web
from harness.gateway import Bench
from stoker.gateway.openapi import merged
from stoker.placement.errors import CheckpointMissing, NotFound

# What an alias serves is served at the path that it stands for.
DOCUMENT = schemathesis.openapi.from_dict(merged()).exclude(path_regex="^/openai/")
EXAMPLES = 5


def _refused(error: CheckpointMissing | NotFound) -> server.Response:
    return server.json_response({"error": error.to_wire()}, status=error.status)


@pytest.fixture
def fuzzed(bench: Bench) -> Iterator[Bench]:
    """Neighbours that know nothing of what is asked for."""
    bench.place.resolve = lambda _: _refused(CheckpointMissing("Expected a checkpoint."))
    bench.place.why = lambda _: _refused(NotFound("Expected a call."))
    yield bench
    bench.place.resolve = bench.place.why = None


@DOCUMENT.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_the_gateway_keeps_to_its_document(case: schemathesis.Case, fuzzed: Bench) -> None:
    case.call_and_validate(
        base_url=fuzzed.url,
        headers=web.basic(fuzzed.password),
        timeout=20,
        excluded_checks=[positive_data_acceptance],
    )
