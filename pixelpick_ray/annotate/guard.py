"""Middleware that protects the page's server: access control and response headers."""

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
    """Return an error response with a sentence for the page to show."""
    return JSONResponse({"error": sentence}, status)


def nothing_here() -> JSONResponse:
    """Return the same 404 for everything that does not exist, so as not to reveal what does."""
    return error(404, "There is nothing here.")


@dataclass(frozen=True)
class Names:
    """Host names of a server, and whether any IP address may lead to it."""

    known: frozenset[str]
    any_address: bool


class Guard:
    """Lets through only requests from our own page.

    The page's address contains a token that other pages and other users of this machine do not know. Because other
    sites' pages can reach a loopback address, even by their own names (DNS rebinding), the Host must be one of our
    names (or any IP address, if reachable from everywhere), and the Origin must match the Host. `once` is a
    single-use token that redirects to the page.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, once: str) -> None:
        self._app, self._token, self._names = app, token.encode(), names_of(host)
        self._once = once.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on with the token removed."""
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
        """Response that needs no application, if any."""
        headers = Headers(scope=scope)
        if not is_ours(headers.get("host", ""), self._names):
            return error(421, "This server does not answer to that host name; open the address that it printed.")
        token, slash, _ = scope["path"].removeprefix("/").partition("/")
        given = token.encode("utf-8", "surrogatepass")
        if self._once and secrets.compare_digest(given, self._once):
            self._once = b""
            return RedirectResponse(f"/{self._token.decode()}/", 303)
        if not (secrets.compare_digest(given, self._token) and slash):
            return nothing_here()
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin is not None and origin != f"http://{headers['host']}":
            return error(403, "Rejected: this came from another site, not from the annotation page.")
        return None


def names_of(host: str) -> Names:
    """Return the names of a server that listens at `host`; if that is everywhere, this may query the network."""
    if host in EVERYWHERE:
        return Names(frozenset((*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower())), any_address=True)
    return Names(frozenset((*LOOPBACK, host.lower())), any_address=False)


def is_ours(given: str, names: Names) -> bool:
    """Whether the Host of a request is one of our names.

    If we listen everywhere, any IP address is accepted: only names can be made to resolve elsewhere.
    """
    name = _name_in(given)
    return name in names.known or (names.any_address and _is_address(name))


def _name_in(given: str) -> str:
    """Name in a Host header without the port; empty if malformed."""
    try:
        parts = urlsplit(f"//{given}")
        _ = parts.port  # ValueError if not a number
    except ValueError:
        return ""
    return "" if parts.username is not None or parts.path else (parts.hostname or "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
