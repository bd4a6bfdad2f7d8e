# SPDX-License-Identifier: Apache-2.0
"""pyecho.py server PORT [HOST] | client PORT HOST: asyncio echo; the client checks 20 connections of random bytes."""

from __future__ import annotations

import asyncio
import random
import signal
import sys


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back until EOF."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM."""
    server = await asyncio.start_server(echo, host, port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with server:
        await stop.wait()


async def talk(host: str, port: int, seed: int) -> None:
    """One connection: every byte must come back in order."""
    source = random.Random(seed)
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(100):
        sent = source.randbytes(source.randrange(1, 20000))
        writer.write(sent)
        if await reader.readexactly(len(sent)) != sent:
            raise SystemExit(f"connection {seed}: bytes differ")
    writer.write_eof()
    if await reader.read() != b"":
        raise SystemExit(f"connection {seed}: more than was sent")
    writer.close()


async def client(host: str, port: int) -> None:
    """Many at once."""
    await asyncio.gather(*(talk(host, port, seed) for seed in range(20)))
    print("ok")


if __name__ == "__main__":
    role, at = sys.argv[1], int(sys.argv[2])
    where = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
    asyncio.run(serve(where, at) if role == "server" else client(where, at))
