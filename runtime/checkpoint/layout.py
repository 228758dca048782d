"""Where every tensor lies in the virtual space, as a worker reads it."""

from __future__ import annotations

import orjson

from stoker.runtime.checkpoint.manifest import Manifest, engine_tensors


def encode_layout(manifest: Manifest) -> bytes:
    """`{"tensors": [[name, dtype, shape, offset, bytes], ...], "byte_count": n}` as JSON.

    Offsets are in the virtual space (manifest module), in the manifest's order; fillers are left
    out. A tensor may be used once the watermark has reached offset + bytes.
    """
    bases = manifest.file_bases
    tensors = [
        [t.name, t.dtype, list(t.shape), bases[t.file] + t.begin, t.end - t.begin]
        for t in engine_tensors(manifest)
    ]
    return orjson.dumps({"tensors": tensors, "byte_count": manifest.byte_count})
