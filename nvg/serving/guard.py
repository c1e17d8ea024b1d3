"""The middleware around every request: its id, bearer tokens, the size limit, HEAD, one line of log, metrics."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import sys
import time
import uuid
from logging.handlers import RotatingFileHandler
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvg.errors import ConfigError
from nvg.serving.errors import RequestError

CLIENT_GONE = 499  # as nginx writes it: no answer was sent, because the client had closed the connection
PROTECTED = "/v1/"
API_KEYS = "NVG_API_KEYS"
logger = logging.getLogger("nvg.requests")


class RequestObserver(Protocol):
    """The receiver of a request's figures (nvg/serving/metrics.py)."""

    def request(self, route: str, status: int, seconds: float) -> None: ...


def api_key_hashes() -> list[str]:
    """Hashes of the keys in NVG_API_KEYS, separated by commas or lines: the cluster sees these, never the keys.

    Raises ConfigError where the variable is set and holds none, which would open the API to all, or where a key holds
    a space, which no client could send.
    """
    text = os.environ.get(API_KEYS)
    if text is None:
        return []
    keys = [key.strip() for key in re.split(r"[,\r\n]", text) if key.strip()]
    if not keys:
        raise ConfigError(f"{API_KEYS} is set and holds no key: unset it to serve without keys, or give some")
    if any(re.search(r"\s", key) for key in keys):
        raise ConfigError(f"{API_KEYS}: a key holds a space: separate keys by commas")
    return [hash_key(key) for key in keys]


def hash_key(key: str) -> str:
    """SHA-256 of a bearer token. A deployment keeps this, never the token."""
    return hashlib.sha256(key.encode()).hexdigest()


def log_requests(path: str, *, on_stderr: bool) -> None:
    """Write one JSON line per request to a file, without the content of the request, and to stderr if asked for.

    The file is closed at 100 MB and kept, with four before it, under its name and a number."""
    handlers: list[logging.Handler] = [RotatingFileHandler(path, maxBytes=100_000_000, backupCount=5, delay=True)]
    if on_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = handlers
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Guard:
    """ASGI middleware that lets a request through, or refuses it."""

    def __init__(self, app: ASGIApp, *, key_hashes: frozenset[str], max_body: int, observer: RequestObserver) -> None:
        self.app = app
        self.key_hashes = key_hashes
        self.max_body = max_body
        self.observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here with 401 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_GONE
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", given) else uuid.uuid4().hex

        head = scope["method"] == "HEAD"  # answered as GET is, without the body
        inner = {**scope, "method": "GET"} if head else scope

        async def answer(message: Message) -> None:
            nonlocal status
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                challenge = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
                await JSONResponse(refusal.body, refusal.status, challenge)(scope, receive, answer)
            else:
                await self.app(inner, self._counted(receive), answer)
        except Exception:  # answered 500 further out; a client that goes away is a CancelledError, which is none
            status = 500
            raise
        finally:
            route = getattr(inner.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            self.observer.request(route, status, seconds)
            line: dict[str, Any] = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            logger.info(json.dumps(line))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> RequestError | None:
        """The error for a request without a known key or with too large a body, None for all others."""
        if self.key_hashes and scope["path"].startswith(PROTECTED) and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            known = [hmac.compare_digest(hash_key(key.strip()), one) for one in self.key_hashes]
            if scheme.lower() != "bearer" or not any(known):
                return RequestError(401, "send a bearer token: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body:
            return RequestError(413, f"the request has {length} bytes, at most {self.max_body} are taken")
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Count the bytes of a body while it is read: one sent in chunks names no length beforehand."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_body:
                raise HTTPException(413, f"the request has more than {self.max_body} bytes")
            return message

        return counted
