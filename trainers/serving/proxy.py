"""Additions to Ray Serve's HTTP proxy: answers are sent at once, and no other listens on its port.

Ray Serve (2.60) makes its socket without a protocol number, so asyncio leaves Nagle's algorithm on.
An answer is two small writes, its head and its body; the body then waits until the client has
acknowledged the head, which the client delays by 40 ms.

Its socket also has SO_REUSEPORT: where another one of the same user listens on the port, both
do, and Linux gives each client one of them at random.

Ray Serve calls `build_middlewares` in its proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH of
`cluster.environment`.
"""

import os
import socket

from ray.serve._private import http_util
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

SHARES_PORT_VAR = "SERVE_SOCKET_REUSE_PORT_ENABLED"
"""Variable of Ray Serve: with 1, proxies may share a port, such as those of several nodes of a
cluster on one machine."""


class NoDelay:
    """Turns Nagle's algorithm off for the connection of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)  # of uvicorn
        transport = getattr(cycle, "transport", None)
        connection = transport and transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._app(scope, receive, send)


def build_middlewares() -> list[Middleware]:
    if os.environ.get(SHARES_PORT_VAR) != "1":
        assert hasattr(http_util, "set_socket_reuse_port")
        http_util.set_socket_reuse_port = reuse_address
    return [Middleware(NoDelay)]


def reuse_address(listener: socket.socket) -> bool:
    """Let a socket take a port where closed connections of an earlier service are in TIME_WAIT, but
    none where another program listens. With SERVE_SOCKET_REUSE_PORT_ENABLED=0 of Ray Serve, a
    service could not start for a minute after the one before it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return True
