"""Everything that `stoker doctor` asks of this machine, with no server running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stoker.placement.environment import (
    cluster_token_file,
    state_dir,
    store_url,
    whole_number,
)
from stoker.placement.errors import StokerError
from stoker.runtime.doctor_check import Check, refused
from stoker.runtime.doctor_disk import (
    FREE_BYTES_WANTED,
    check_direct_reads,
    check_disk_space,
    check_state_directory,
)
from stoker.runtime.doctor_kernel import (
    check_anonymous_huge_pages,
    check_io_uring,
    check_locked_memory,
    check_open_files,
    check_shared_huge_pages,
    check_shared_memory,
)
from stoker.runtime.doctor_machine import (
    MEMORY,
    check_cores,
    check_digest_instructions,
    check_gpus,
    check_memory,
)
from stoker.runtime.doctor_sandbox import check_limits, check_sandbox
from stoker.runtime.doctor_services import S3, check_s3, check_store
from stoker.runtime.doctor_software import (
    NATIVE_MODULE,
    check_native_module,
    check_packages,
    check_python,
)
from stoker.runtime.limits import default_dram_bytes, memory_bytes


def node_checks(environment: Mapping[str, str]) -> Iterator[Check]:
    """Each check as soon as it is made, in the order in which a user would repair."""
    yield check_python()
    yield check_packages()
    native = check_native_module()
    yield native
    state = state_dir(environment)
    yield check_state_directory(state)
    yield from _sizes(environment)
    yield check_direct_reads(state)
    yield check_shared_huge_pages()
    yield check_anonymous_huge_pages()
    yield check_shared_memory()
    yield check_locked_memory()
    yield check_io_uring()
    yield check_open_files()
    yield check_sandbox()
    yield check_limits()
    yield check_cores()
    yield check_digest_instructions()
    yield check_gpus()
    yield check_store(store_url(environment), cluster_token_file(environment))
    if native.state == "ok":
        yield from check_s3(environment)
    else:
        found = "S3 was not asked, because reading it needs the native module."
        yield Check(S3, "warn", found, f"Repair the {NATIVE_MODULE} first.")


def _sizes(environment: Mapping[str, str]) -> Iterator[Check]:
    """Disk and memory against the sizes that were asked for."""
    try:
        ssd_bytes = whole_number(environment, "STOKER_SSD_BYTES", FREE_BYTES_WANTED)
        pool_bytes = default_dram_bytes(memory_bytes())
        pool_bytes = whole_number(environment, "STOKER_DRAM_BYTES", pool_bytes)
    except StokerError as error:
        yield refused(MEMORY, error)
        return
    yield check_disk_space(state_dir(environment), ssd_bytes)
    yield check_memory(pool_bytes)
