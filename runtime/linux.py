"""System calls that the standard library lacks. Each raises OSError with what it was for."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SETPCAP = 8
_MOUNT_SETATTR = 442  # as all numbers above 423, the same on every architecture
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def system_call(what: str, number: int, *arguments: int | bytes | ctypes.Structure | None) -> int:
    """The call of that number; structures go by reference."""
    passed = [_argument(argument) for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *passed), what)


def prctl(what: str, option: int, *arguments: int) -> int:
    passed = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(option, *passed), what)


def die_with_parent(number: int) -> None:
    """Has the kernel send signal `number` to this process when the one that forked it ends."""
    prctl("follow the parent's death", _PR_SET_PDEATHSIG, number)


def forbid_new_privileges() -> None:
    """No program that this process runs gets more rights than it has: no set-uid, no file caps."""
    prctl("set no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Gives up every capability of this process, and the means to get one back."""
    # Without CAP_SETPCAP the bounding set stays as it is: no_new_privs makes it worthless.
    if _held_capabilities() >> _CAP_SETPCAP & 1:
        for capability in range(_LAST_CAPABILITY + 1):
            prctl("drop a capability for good", _PR_CAPBSET_DROP, capability)
    prctl("clear ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "drop capabilities")


def _held_capabilities() -> int:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, data), "read capabilities")
    return int(data[0])


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "make namespaces")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _checked(result, f"mount {target}")


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_read_only(target: str, read_only: bool, *, everything_below: bool = False) -> None:
    """Whether the mount at `target` can be written; Linux 5.12."""
    attributes = _MountAttributes()
    if read_only:
        attributes.attr_set = _MOUNT_ATTR_RDONLY
    else:
        attributes.attr_clr = _MOUNT_ATTR_RDONLY
    system_call(
        f"change the mount at {target}",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE if everything_below else 0,
        attributes,
        ctypes.sizeof(attributes),
    )


def _argument(value: int | bytes | ctypes.Structure | None) -> object:
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
