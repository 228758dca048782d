"""The driver's library in software: it names GPUs, and computes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
static const char* const names[] = NAMES;
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown(void) { return 0; }
const char* nvmlErrorString(int code) { return "Driver/library version mismatch"; }
int nvmlSystemGetDriverVersion(char* text, unsigned n) { strncpy(text, "570.1", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) {
  *device = (void*)&names[i]; return 0;
}
int nvmlDeviceGetName(void* device, char* text, unsigned n) {
  strncpy(text, *(const char**)device, n); return 0;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned n) {
  snprintf(text, n, "GPU-%d", (int)((const char**)device - names)); return 0;
}
int nvmlDeviceGetMemoryInfo(void* device, Memory* memory) {
  memory->total = 24ull << 30; memory->free = memory->used = 12ull << 30; return 0;
}
"""


def compile_nvml(folder: Path, *names: str, init: int = 0) -> Path:
    """`folder`, to be put into LD_LIBRARY_PATH. The GPUs have 24 GiB and are called GPU-0, ….

    `init` is what the library's start returns: 0 for success.
    """
    source = folder / "nvml.c"
    quoted = ", ".join(f'"{name}"' for name in (*names, ""))
    source.write_text(f"#define NAMES {{{quoted}}}\n{_SOURCE}")
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", f"-DCOUNT={len(names)}", f"-DINIT={init}"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source)], check=True, timeout=60)
    return folder
