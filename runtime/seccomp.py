"""A filter of system calls: what no function needs, and what attacks on kernels begin with, is
refused with EPERM. It is a list of refusals and not of permissions, because the libraries of a
function are its author's choice.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from stoker.runtime import linux

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

# struct seccomp_data: the number, the architecture, then the arguments from byte 16.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE3 = 435

# name: (number on x86-64, number on 64-bit ARM)
REFUSED = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    # ways around the permissions of folders
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # large and often attacked parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # the machine as a whole
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`audit` is the kernel's name for it, `column` its numbers in REFUSED."""

    audit: int
    column: int
    clone: int
    refused: tuple[int, ...] = ()


ARCHITECTURES = {
    # iopl, ioperm and modify_ldt are x86's own; from 0x40000000 on lie the numbers of x32.
    "x86_64": Architecture(0xC000003E, 0, 56, (172, 173, 154)),
    "aarch64": Architecture(0xC00000B7, 1, 220),
}
_X32 = 0x40000000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict(machine: str = os.uname().machine) -> None:
    """Applies the filter to this thread and its children, for good. Needs no_new_privs."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no filter for {machine}", "filter system calls")
    code = program(architecture)
    filtered = _Program(len(code) // 8, code)
    linux.prctl("filter system calls", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filtered))


def program(architecture: Architecture) -> bytes:
    """The filter in the kernel's byte code (classic BPF).

    A call of another architecture (32 bits, x32) is unknown here, and so is clone3, whose flags
    no filter can see: libc then takes clone, whose flags show new namespaces.
    """
    numbers = [pair[architecture.column] for pair in REFUSED.values()]
    numbers += architecture.refused
    count = len(numbers)
    # Jumps count the instructions to skip. The last three are the verdicts.
    code = [
        _op(_LOAD, _ARCHITECTURE),
        _op(_EQUAL, architecture.audit, 0, count + 7),
        _op(_LOAD, _NUMBER),
        _op(_AT_LEAST, _X32, count + 5, 0),
        _op(_EQUAL, _CLONE3, count + 4, 0),
        *(_op(_EQUAL, number, count - at + 4, 0) for at, number in enumerate(numbers)),
        _op(_EQUAL, architecture.clone, 0, 2),
        _op(_LOAD, _FIRST_ARGUMENT),
        _op(_ANY_BIT, _NEW_NAMESPACES, 2, 0),
        _op(_RETURN, _ALLOW),
        _op(_RETURN, _ERRNO | errno.ENOSYS),
        _op(_RETURN, _ERRNO | errno.EPERM),
    ]
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
