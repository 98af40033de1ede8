"""/healthz and /readyz, as a kubelet asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serve_health(port: int, alive: Callable[[], bool], ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Answer 200 or 503: `alive` for /healthz (else the pod is to be restarted), `ready` for /readyz."""
    application = web.Application()
    application.add_routes([web.get("/healthz", _answer(alive)), web.get("/readyz", _answer(ready))])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def _answer(holds: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if holds() else web.Response(status=503, text="not yet\n")

    return answer
