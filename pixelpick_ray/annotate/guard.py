"""What stands before the page's server: who may ask, how much may be sent, what every response says to the browser."""

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
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


@dataclass(frozen=True)
class Names:
    """What a server is called, and whether every address may lead to it."""

    known: frozenset[str]
    any_address: bool


class Guard:
    """Lets through what comes from our own page.

    The address of the page has a token that other pages and other users of this machine do not know. A page of another
    site can reach a server at a loopback address, by a name of its own that resolves to it, too: so the Host must be a
    name of ours (every address where it is reachable from everywhere), and the Origin that of the Host. `once` is
    another token, which leads to the page the first time that it is given.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, once: str) -> None:
        self._app, self._token, self._names = app, token.encode(), names_of(host)
        self._once = once.encode()

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

        reply = self._reply(scope)
        if reply is not None:
            await reply(scope, receive, send_all)
            return
        path = "/" + scope["path"].removeprefix("/").partition("/")[2]
        await self._app({**scope, "path": path}, receive, send_all)

    def _reply(self, scope: Scope) -> Response | None:
        """What is answered without the application."""
        headers = Headers(scope=scope)
        if not is_ours(headers.get("host", ""), self._names):
            return error(421, "This server does not answer under that name; open the address that it printed.")
        token, slash, _ = scope["path"].removeprefix("/").partition("/")
        given = token.encode("utf-8", "surrogatepass")
        if self._once and secrets.compare_digest(given, self._once):
            self._once = b""
            return RedirectResponse(f"/{self._token.decode()}/", 303)
        if not (secrets.compare_digest(given, self._token) and slash):
            return nothing_here()
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin is not None and origin != f"http://{headers['host']}":
            return error(403, "Another site sent this; only the page itself may.")
        return None


def names_of(host: str) -> Names:
    """The names of a server that listens at `host`. Where that is everywhere it may ask the network for them."""
    if host in EVERYWHERE:
        return Names(frozenset((*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower())), any_address=True)
    return Names(frozenset((*LOOPBACK, host.lower())), any_address=False)


def is_ours(given: str, names: Names) -> bool:
    """Whether the Host of a request is one of our names.

    Where we listen everywhere any address of a machine will do: only names can be made to lead elsewhere.
    """
    name = _name_in(given)
    return name in names.known or (names.any_address and _is_address(name))


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
