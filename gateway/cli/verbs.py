"""Every verb that talks to a gateway."""

from __future__ import annotations

import click

from stoker.gateway.cli.deploy import deploy
from stoker.gateway.cli.export_knative import export
from stoker.gateway.cli.invoke import invoke
from stoker.gateway.cli.jobs import jobs
from stoker.gateway.cli.manage import evict, logs, remove, scale
from stoker.gateway.cli.namespace import namespace
from stoker.gateway.cli.secret import secret
from stoker.gateway.cli.status import describe, list_functions, list_instances, why

VERBS: tuple[click.Command, ...] = (
    deploy,
    invoke,
    jobs,
    list_functions,
    list_instances,
    describe,
    why,
    logs,
    secret,
    namespace,
    scale,
    evict,
    remove,
    export,
)
