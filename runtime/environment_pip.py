"""`python -m stoker.runtime.environment_pip AGENT_PID …`: pip, as an agent runs it.

It works at low priority, because requests are being answered on the same cores. It leads a process
group, and ends with all of it when the agent that started it ends.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NICENESS = 10


def main() -> None:
    agent_pid = int(sys.argv.pop(1))
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != agent_pid:  # it died before the line above
        sys.exit(1)
    os.nice(_NICENESS)
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
