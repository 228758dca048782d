"""A zygote without torch, whose workers are `sleep`."""

from __future__ import annotations

import sys
from pathlib import Path

from stoker.placement.records import FunctionRecord
from stoker.runtime.worker_start import WorkerStart

# `argv` is the behaviour and the socket.
_FAKE = r"""
import json, os, socket, subprocess, sys, threading
behaviour, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
tell = lambda **event: control.send(json.dumps(event).encode())
json.dump({"pid": os.getpid(), "environment": dict(os.environ)}, open("seen.json", "w"))
def wait(name, worker):
    status = worker.wait()
    tell(event="exited", instance_id=name, pid=worker.pid, status=status)
if behaviour != "silent":
    tell(event="ready")
while True:
    message, descriptors, _, _ = socket.recv_fds(control, 1 << 18, 8)
    if not message:
        break
    start = json.loads(message)["start"]
    json.dump(start, open("start.json", "w"))
    name = start["instance_id"]
    if behaviour == "dies":
        os._exit(3)
    if behaviour == "refuses":
        error = {"code": "no_capacity", "cause": "It is full."}
        tell(event="refused", instance_id=name, error=error)
        continue
    if behaviour == "mute":
        continue
    os.write(descriptors[0], b"inherited")
    for descriptor in descriptors:
        os.close(descriptor)
    worker = subprocess.Popen(["sleep", "60"], start_new_session=True)
    tell(event="forked", instance_id=name, pid=worker.pid)
    threading.Thread(target=wait, args=(name, worker), daemon=True).start()
"""


def start(instance_id: str = "1-1") -> WorkerStart:
    function = FunctionRecord("echo", "openfaas-fn", "echo:latest")
    return WorkerStart(instance_id, function, "token", 1, "/nowhere", 0.0)


def fake_command(folder: Path, behaviour: str = "good") -> tuple[str, ...]:
    """The command of one; it says in seen.json who it is, and in start.json whom it starts."""
    script = folder / "fake_zygote.py"
    script.write_text(_FAKE)
    return (sys.executable, str(script), behaviour)
