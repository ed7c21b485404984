"""What stands before the page's server: who may ask, how much may be sent, what every response says to the browser."""

import ipaddress
import secrets
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 64 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
COMMON = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def error(status: int, sentence: str) -> JSONResponse:
    """What the page shows when something cannot be done."""
    return JSONResponse({"error": sentence}, status)


def nothing_here() -> JSONResponse:
    """The same for everything that is not there, so that nobody learns what is."""
    return error(404, "There is nothing here.")


class Guard:
    """Lets through what comes from our own page.

    The address of the page has a token that other pages and other users of this machine do not know. A page of another
    site can reach a server at a loopback address, by a name of its own that resolves to it, too: so the Host must be a
    name of ours (`hosts`; every address where it is reachable from everywhere), and the Origin that of the Host.
    """

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app, self._token, self._host = app, token.encode(), host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on without the token."""
        if scope["type"] != "http":
            return

        async def send_all(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in COMMON.items():
                    headers[name] = value
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, send_all)
            return
        path = "/" + scope["path"].removeprefix("/").partition("/")[2]
        await self._app({**scope, "path": path}, receive, send_all)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if not is_ours(headers.get("host", ""), self._host):
            return error(421, "This server does not answer under that name; open the address that it has printed.")
        token, slash, _ = scope["path"].removeprefix("/").partition("/")
        if not (secrets.compare_digest(token.encode("utf-8", "surrogatepass"), self._token) and slash):
            return nothing_here()
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin is not None and origin != f"http://{headers['host']}":
            return error(403, "Another site sent this; only the page itself may.")
        return None


def is_ours(given: str, host: str) -> bool:
    """Whether the Host of a request is a name of a server that listens at `host`.

    Where it listens everywhere any address of a machine will do: only names can be made to lead elsewhere.
    """
    name = _name_in(given)
    allowed: Collection[str] = (*LOOPBACK, host.lower())
    if host in EVERYWHERE:
        return name in (*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower()) or _is_address(name)
    return name in allowed


def _name_in(given: str) -> str:
    """The name in a Host without its port; empty when it is none."""
    try:
        parts = urlsplit(f"//{given}")
        _ = parts.port  # ValueError when it is no number
    except ValueError:
        return ""
    return "" if parts.username is not None or parts.path else (parts.hostname or "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
