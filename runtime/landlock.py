"""Landlock: from here on, this process and its children reach the files that are named and no
others, and no process outside. Paths are taken as they lie when the rule is made: what is moved
there later does not count.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from stoker.runtime import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR = (1 << bit for bit in range(4, 8))
_MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = (1 << bit for bit in range(8, 12))
_MAKE_SYM, _REFER, _TRUNCATE = (1 << bit for bit in range(12, 15))
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_EVERYTHING = (1 << 15) - 1

READ = _EXECUTE | _READ_FILE | _READ_DIR
WRITE = _EVERYTHING & ~(_MAKE_CHAR | _MAKE_BLOCK)
DEVICE = _READ_FILE | _WRITE_FILE

_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """Which Landlock this kernel has, from 1; OSError where it has none or it is switched off."""
    return linux.system_call("use Landlock", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(rules: Iterable[tuple[str, int]]) -> None:
    """Leaves this thread the accesses that `rules` give, for each path and what lies below it.

    Needs no_new_privs. From ABI 6 on, signals reach this process' own descendants only.
    """
    version = abi()
    handled = _handled(version)
    ruleset = _Ruleset(handled, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    size = 24 if version >= 6 else 8
    descriptor = linux.system_call("make Landlock rules", _CREATE_RULESET, ruleset, size, 0)
    try:
        for path, access in rules:
            _allow(descriptor, path, access & handled)
        linux.system_call("apply Landlock rules", _RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def _handled(version: int) -> int:
    """What this version can tell apart; what it cannot, it lets pass."""
    # Before ABI 2 files never move between folders; before ABI 3 truncation is not seen.
    return _EVERYTHING & ~(_REFER if version < 2 else 0) & ~(_TRUNCATE if version < 3 else 0)


def _allow(ruleset: int, path: str, access: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            access &= _OF_A_FILE
        rule = _PathBeneath(access, beneath)
        linux.system_call(f"allow {path}", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(beneath)
