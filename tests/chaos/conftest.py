"""Seeded faults of the checkpoint tiers: a few rounds in every run, all of them with --full."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every round of the repeated faults")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`rounds(few, all)`: as many as this run takes."""
    # Not registered when this folder is collected with all the others.
    full = request.config.getoption("--full", default=False)
    return lambda few, every: every if full else few
