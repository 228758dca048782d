"""BentoML: a null function; `bentoml serve bento_app:Null`."""

from __future__ import annotations

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60})
class Null:
    @bentoml.api(route="/null")
    async def null(self) -> dict[str, str]:
        return {}
