"""Images that need no build: those that OpenFaaS' own tools deploy to try a provider.

A name may have the prefix `docker.io/` and any tag. An image that was built under it goes first.
"""

from __future__ import annotations

from stoker.gateway.builder import Build, build_files

_REDIRECTOR = b'''"""Sends whoever calls to `destination`, or by it back to where it came from."""
import os


def handle(event, context):
    return {"statusCode": 302, "headers": {"Location": os.environ["destination"]}}
'''

_FILES = {
    # Nothing but a shell's programs: `fprocess` says what runs.
    "functions/alpine": {"README": b"A folder for fprocess.\n"},
    "theaxer/redirector": {"handler.py": _REDIRECTOR},
}


def builtin_image(image: str) -> Build | None:
    """The build of a built-in image, always the same bytes; None if it is none."""
    name = image.removeprefix("docker.io/").partition("@")[0].partition(":")[0]
    files = _FILES.get(name)
    return None if files is None else build_files(image, files)
