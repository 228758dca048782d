"""The verbs for secrets and namespaces against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from harness.gateway import Bench
from stoker.deploy.main import main

Run = Callable[..., Result]


@pytest.fixture
def run(bench: Bench) -> Run:
    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        settings = {"STOKER_GATEWAY": bench.url, "STOKER_PASSWORD": bench.password.strip()}
        return CliRunner().invoke(main, arguments, input=stdin, env=settings)

    return invoke


def test_a_namespace_is_made_described_and_removed(run: Run) -> None:
    assert run("namespace", "create", "staging", "--label", "team=a").output == "Created staging\n"
    assert run("namespace", "create", "staging").exit_code == 1
    assert "staging" in run("namespace", "ls").output.splitlines()
    described = json.loads(run("namespace", "describe", "staging", "--json").output)
    assert described["labels"] == {"team": "a"}
    assert run("namespace", "rm", "staging").output == "Removed staging\n"
    assert "Expected a namespace 'staging', found none." in run("namespace", "rm", "staging").stderr


def test_a_secret_is_made_listed_updated_and_removed(run: Run) -> None:
    assert run("secret", "create", "api-key", stdin="first").output == "Created api-key\n"
    assert run("secret", "create", "api-key", stdin="again").exit_code == 1
    assert run("secret", "update", "api-key", stdin="second").output == "Updated api-key\n"
    listed = run("secret", "ls")
    assert "api-key\topenfaas-fn" in listed.output.splitlines()
    assert "second" not in listed.output
    assert run("secret", "rm", "api-key").output == "Removed api-key\n"
    assert "Expected a secret 'api-key', found none." in run("secret", "rm", "api-key").stderr
