"""KServe's model server: a null model.

python kserve_app.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import kserve


class Null(kserve.Model):
    def __init__(self) -> None:
        super().__init__("null")
        self.ready = True

    async def predict(self, payload: Any, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: ARG002
        return {"predictions": []}


if __name__ == "__main__":
    kserve.ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start([Null()])
