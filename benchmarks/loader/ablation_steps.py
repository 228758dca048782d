"""What each part of the loader brings: every step has what the steps before it have.

by_tensor        each tensor read by itself, through the page cache, into fresh memory
bulk             16 MiB at a time in file order, whatever the tensors
direct           past the page cache
huge_pages       into huge pages
reuse            into memory that is there already, as a node's pool is
threads          four threads: reading goes on while chunks are looked after
digests          every chunk verified
"""

from __future__ import annotations

STEPS = ("by_tensor", "bulk", "direct", "huge_pages", "reuse", "threads", "digests")
