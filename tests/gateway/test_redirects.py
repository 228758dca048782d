"""Nobody who answers with a redirect gets our processes to show a token elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from stoker.gateway.agent_client import AgentClient
from stoker.gateway.internal import open_session
from stoker.gateway.placement_client import PlacementClient
from stoker.placement.errors import StokerError
from stoker.placement.records import EvictRequest, LeaderRecord, NodeRecord, ResolveRequest


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_neighbour_is_an_error_and_is_not_followed(status: int) -> None:
    elsewhere: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/elsewhere":
            elsewhere.append(request)
        where = f"http://localhost:{request.url.port}/elsewhere"
        return web.Response(status=status, headers={"Location": where})

    async def scenario() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = "{}:{}".format(*runner.addresses[0][:2])
        node, leader = NodeRecord("n", address, 1, 0, 0, 1), LeaderRecord("l", address, 1)
        session = open_session()
        agents = AgentClient(session, "token")
        placement = PlacementClient(session, lambda: leader, lambda: True, "g", "token")
        try:
            for call in (
                agents.resolve([node], ResolveRequest("s3://b/m")),
                agents.loaded_bytes(node, "0" * 64),
                agents.evict([node], EvictRequest("0" * 64)),
                anext(agents.log_lines(node, {"function": "f.ns"})),
                placement.why("a"),
            ):
                with pytest.raises(StokerError, match="status 30"):
                    await call
        finally:
            await session.close()
            await runner.cleanup()

    asyncio.run(scenario())
    assert elsewhere == []
