"""Makes the environments of the peers, one each, from the exact pins in `peers`.

    python benchmarks/coldstart/install_peers.py [NAME ...]

Without names those of this benchmark; another benchmark names its own and shares these.

A peer that does not install is left out; `build/peers/NAME.error` has pip's last words.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "build" / "peers"
PINS = [ROOT / "benchmarks" / name / "peers" for name in ("coldstart", "gateway")]


def environment_of(name: str) -> Path:
    return PEERS / name


def reason_of(name: str) -> str | None:
    """Why the peer is not there; None when it is."""
    if (environment_of(name) / ".installed").exists():
        return None
    error = PEERS / f"{name}.error"
    return error.read_text().strip() if error.exists() else "It was never installed."


def install(name: str) -> None:
    environment = environment_of(name)
    pins = next(path for folder in PINS if (path := folder / f"{name}.txt").exists())
    done, error = environment / ".installed", PEERS / f"{name}.error"
    if done.exists() and done.read_text() == pins.read_text():
        return
    shutil.rmtree(environment, ignore_errors=True)
    error.unlink(missing_ok=True)
    environment.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    ran = subprocess.run(
        [
            *(str(environment / "bin" / "pip"), "install", "--quiet"),
            *("--disable-pip-version-check", "--requirement", str(pins)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode == 0:
        done.write_text(pins.read_text())
        return
    lines = [line.strip() for line in ran.stdout.splitlines() if line.strip()]
    error.write_text(" | ".join(lines[-6:])[-1000:])
    print(f"{name} does not install: {error.read_text()}", file=sys.stderr)


def main() -> None:
    for name in sys.argv[1:] or sorted(path.stem for path in PINS[0].glob("*.txt")):
        install(name)


if __name__ == "__main__":
    main()
