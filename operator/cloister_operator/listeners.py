"""The control and canary listeners: each sends a line back. Policies decide who reaches which."""

from __future__ import annotations

import asyncio
from contextlib import suppress

MAX_LINE = 256
PATIENCE_SECONDS = 5.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send one line back, within a bounded time and size."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            line = await reader.readline()
            writer.write(line[:MAX_LINE])
            await writer.drain()
    except (OSError, TimeoutError, ValueError):
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def listen(host: str, port: int) -> asyncio.Server:
    """A listener that answers every line."""
    return await asyncio.start_server(echo, host, port, limit=MAX_LINE)
