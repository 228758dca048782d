"""The `stoker` command: only wires the verbs of each package."""

from __future__ import annotations

import importlib

import click

from stoker.gateway.cli.verbs import VERBS

# Verbs whose modules are heavy or rarely needed are imported when they are named.
_LAZY = {
    "doctor": ("stoker.deploy.doctor", "doctor"),
    "gateway": ("stoker.deploy.processes", "gateway"),
    "model": ("stoker.runtime.cli", "model"),
    "node": ("stoker.deploy.processes", "node"),
    "placement": ("stoker.deploy.processes", "placement"),
    "plan": ("stoker.deploy.simulate", "plan_command"),
    "simulate": ("stoker.deploy.simulate", "simulate_command"),
    "up": ("stoker.deploy.up", "up"),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, attribute = _LAZY[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stoker")
def main() -> None:
    """Run model functions that start fast enough to scale to zero."""


for verb in VERBS:
    main.add_command(verb)

if __name__ == "__main__":
    main()
