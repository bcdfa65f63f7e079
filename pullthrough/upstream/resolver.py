"""Names to addresses: the configuration's own first, then the machine's resolver."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

_Infos = Sequence[tuple[Any, ...]]


class Resolver(AbstractResolver):
    """Knows ``addresses`` by name; the Host header and the TLS name stay the name's."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = {name.lower(): address for name, address in addresses.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return ``host``'s addresses; raises :class:`OSError`."""
        own = self._addresses.get(host.lower())
        flags = 0 if own else socket.AI_ADDRCONFIG  # no AAAA questions where there is no IPv6
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for found_family, _, protocol, _, address in await _lookup(
                own or host, port, family, flags
            )
        ]

    async def close(self) -> None:
        """Hold nothing, release nothing."""


async def _lookup(host: str, port: int, family: socket.AddressFamily, flags: int) -> _Infos:
    """Run getaddrinfo in a daemon thread of its own.

    With the name servers away it blocks for half a minute. In the loop's default executor that
    would hold up whatever else runs there, and the process's exit.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Infos] = loop.create_future()

    def settle(result: _Infos | OSError) -> None:
        if answer.done():  # nobody waits any more
            return
        if isinstance(result, OSError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def ask() -> None:
        result: _Infos | OSError
        try:
            result = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
        except OSError as error:
            result = error
        except UnicodeError:  # a label that is empty or longer than 63
            result = socket.gaierror(socket.EAI_NONAME, "not a host name")
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await answer
