"""Runs a Supervisor over the programs given as JSON in argv[1]; the tests kill and watch it."""

import json
import os
import sys
from pathlib import Path

from stoker.deploy.supervisor import ChildSpec, Supervisor
from stoker.placement.errors import StokerError


class ReadyAtOnce:
    def look(self, now: float) -> float | None:
        print("ready", flush=True)
        return None


def main() -> None:
    setup = json.loads(sys.argv[1])
    folder = Path(setup["folder"])
    memory = (os.dup2(os.memfd_create("memory"), 9),) if setup["memory"] else ()
    specs = [
        ChildSpec(name, (sys.executable, "-S", "-c", code), {}, folder / f"{name}.log", memory)
        for name, code in setup["programs"].items()
    ]
    supervisor = Supervisor(
        specs, lambda line: print(line, flush=True), stop_seconds=setup["stop_seconds"]
    )
    try:
        supervisor.run(ReadyAtOnce())
    except StokerError as error:
        print(f"failed: {error}", flush=True)
        sys.exit(1)
    print("stopped", flush=True)


main()
