"""`stoker placement`, `stoker node`, `stoker gateway`: one process of a cluster, run by hand.

Each becomes the process that `stoker up` would have started: its log is its standard error, and
whoever started it (a shell, systemd, a container) sees its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from stoker.deploy.supervisor import python_module
from stoker.deploy.up import prepare_state
from stoker.deploy.up_settings import parse_size_bytes
from stoker.gateway.cli.options import reports_errors
from stoker.placement.environment import state_dir

_F = TypeVar("_F", bound=Callable[..., Any])


def _shared(command: _F) -> _F:
    """The options that every process of a cluster has."""
    for option in (
        click.option(
            "--cluster-token-file",
            "token_file",
            type=click.Path(path_type=Path),
            default=None,
            help="The cluster's token, the same everywhere. [default: auth/cluster-token in STATE]",
        ),
        click.option(
            "--store",
            default=None,
            metavar="URL",
            help="The cluster's store, zookeeper://host:2181[,host:2181]/chroot.",
        ),
        click.option(
            "--state", type=click.Path(path_type=Path), default=None, help="State directory."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_shared
@click.option("--bind", default=None, metavar="HOST:PORT", help="Where gateways reach it.")
@reports_errors
def placement(
    state: Path | None, store: str | None, token_file: Path | None, bind: str | None
) -> None:
    """Run one placement process of a cluster: one of them leads, the others stand by."""
    _become("stoker.placement.main", state, store, token_file, STOKER_PLACEMENT_BIND=bind)


@click.command()
@_shared
@click.option("--name", default=None, help="The node's name.  [default: the host's]")
@click.option("--bind", default=None, metavar="HOST:PORT", help="Where the cluster reaches it.")
@click.option("--zone", default=None, help="What fails together with it, such as a rack.")
@click.option("--dram-bytes", default=None, metavar="SIZE", help="Host memory for checkpoints.")
@click.option("--ssd-bytes", default=None, metavar="SIZE", help="Disk for checkpoints.")
@reports_errors
def node(
    state: Path | None,
    store: str | None,
    token_file: Path | None,
    name: str | None,
    bind: str | None,
    zone: str | None,
    dram_bytes: str | None,
    ssd_bytes: str | None,
) -> None:
    """Run one node of a cluster: the agent that runs instances on this machine."""
    _become(
        "stoker.runtime.agent_main",
        state,
        store,
        token_file,
        STOKER_NODE_ID=name,
        STOKER_AGENT_BIND=bind,
        STOKER_ZONE=zone,
        STOKER_DRAM_BYTES=_bytes(dram_bytes),
        STOKER_SSD_BYTES=_bytes(ssd_bytes),
    )


@click.command()
@_shared
@click.option("--bind", default=None, metavar="HOST:PORT", help="Where clients reach it.")
@reports_errors
def gateway(
    state: Path | None, store: str | None, token_file: Path | None, bind: str | None
) -> None:
    """Run one gateway of a cluster."""
    _become("stoker.gateway.main", state, store, token_file, STOKER_GATEWAY_BIND=bind)


def _bytes(size: str | None) -> str | None:
    return None if size is None else str(parse_size_bytes(size))


def _become(
    module: str,
    state: Path | None,
    store: str | None,
    token_file: Path | None,
    **settings: str | None,
) -> NoReturn:
    """Replace this process; what is not named keeps the environment's value, or its default."""
    directory = (state or state_dir(os.environ)).expanduser().resolve()
    prepare_state(directory)
    named = {
        "STOKER_STATE": str(directory),
        "STOKER_STORE": store,
        "STOKER_CLUSTER_TOKEN_FILE": None if token_file is None else str(token_file.absolute()),
        **settings,
    }
    argv = python_module(module)
    stated = {name: value for name, value in named.items() if value is not None}
    os.execve(argv[0], argv, {**os.environ, **stated})  # noqa: S606 - a program of our own
