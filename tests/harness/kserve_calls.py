"""Calls of KServe's own client, in a process of its own: `URL PASSWORD EMBED DOUBLE` as arguments.

Prints one JSON object. The client's packages do not go with the project's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def calls(url: str, password: str, embed: str, double: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {password}"}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        told: dict[str, Any] = {
            "live": await client.is_server_live(url, headers=headers),
            "ready": await client.is_server_ready(url, headers=headers),
            "model_ready": await client.is_model_ready(url, embed, headers=headers),
            "nobody_ready": await client.is_model_ready(url, "nobody", headers=headers),
        }

        async def infer(model: str, values: Any, datatype: str, **fields: Any) -> Any:
            given = InferInput("input-0", list(values.shape), datatype)
            given.set_data_from_numpy(values, binary_data=fields.pop("binary", True))
            request = InferRequest(model, [given], request_id="the-id", **fields)
            return await client.infer(url, request, model_name=model, headers=dict(headers))

        texts = np.array([b"a cat", "a kitten", "the stock market"], dtype=np.object_)
        for binary in (True, False):
            answer = await infer(embed, texts, "BYTES", binary=binary)
            told[f"embed_{binary}"] = {
                "id": answer.id,
                "model": answer.model_name,
                "outputs": [output.name for output in answer.outputs],
                "vectors": answer.outputs[0].as_numpy().tolist(),
            }
        wanted = [RequestedOutput("doubled", {"binary_data": True})]
        numbers = np.array([[1.5, 2.5]], dtype=np.float32)
        answer = await infer(double, numbers, "FP32", request_outputs=wanted)
        told["doubled"] = answer.outputs[0].as_numpy().tolist()
        try:
            await infer("nobody", numbers, "FP32")
        except httpx.HTTPStatusError as error:
            told["error"] = [error.response.status_code, str(error)]
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(calls(*sys.argv[1:]))))
