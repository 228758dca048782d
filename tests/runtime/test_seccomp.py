from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys

import pytest

from stoker.runtime.seccomp import ARCHITECTURES, REFUSED, program, restrict

ALLOW = 0x7FFF0000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
CLONE3 = 435
THREAD_FLAGS = 0x3D0F00  # as glibc makes a thread


def run(code: bytes, audit: int, number: int, argument: int = 0) -> int:
    """What the kernel's machine for classic BPF returns for this system call."""
    data = struct.pack("=iIQ6Q", number, audit, 0, argument, 0, 0, 0, 0, 0)
    instructions = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_exactly_what_is_listed_is_refused(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture)
    listed = {pair[architecture.column] for pair in REFUSED.values()} | {*architecture.refused}

    verdicts = {number: run(code, architecture.audit, number) for number in range(600)}

    assert {number for number, verdict in verdicts.items() if verdict == EPERM} == listed
    assert {number for number, verdict in verdicts.items() if verdict == ENOSYS} == {CLONE3}
    assert {*verdicts.values()} == {ALLOW, EPERM, ENOSYS}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_new_process_or_thread_is_allowed_and_a_new_namespace_is_not(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture)

    def verdict(flags: int) -> int:
        return run(code, architecture.audit, architecture.clone, flags)

    assert verdict(17) == verdict(THREAD_FLAGS) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert verdict(THREAD_FLAGS | 1 << bit) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_of_another_architecture_are_unknown(machine: str) -> None:
    code = program(ARCHITECTURES[machine])

    assert run(code, 0x40000003, 1) == ENOSYS  # 32-bit x86
    assert run(code, ARCHITECTURES[machine].audit, 0x40000001) == ENOSYS  # x32


def test_a_machine_without_a_filter_is_told() -> None:
    with pytest.raises(OSError, match="no filter for vax"):
        restrict("vax")


def test_the_kernel_refuses_what_the_filter_refuses_and_the_rest_works() -> None:
    """Each call is made with nonsense: without the filter, most would be EINVAL or EFAULT."""
    column = ARCHITECTURES[os.uname().machine].column
    numbers = {
        name: pair[column]
        for name, pair in REFUSED.items()
        if name not in ("reboot", "vhangup", "swapon", "swapoff", "acct")  # had they an effect …
    }
    code = f"""
import ctypes, os, subprocess, sys, threading
from stoker.runtime import linux, seccomp
linux.forbid_new_privileges()
seccomp.restrict()
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers!r}.items():
    result = libc.syscall(number, -1, -1, -1, -1, -1, -1)
    assert (result, ctypes.get_errno()) == (-1, 1), (name, result, ctypes.get_errno())
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run(["uname"], capture_output=True, text=True).stdout.strip())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == ["thread", "Linux"]
