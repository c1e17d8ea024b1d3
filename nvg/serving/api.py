"""The HTTP API, after the OpenAI Images API, as a FastAPI application around an engine. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nvg import __version__
from nvg.serving.errors import RequestError
from nvg.serving.guard import Guard, RequestObserver
from nvg.serving.routes import Service, image_routes, model_routes, operation_routes

STUDIO = Path(__file__).with_name("studio")


def create_app(service: Service, *, key_hashes: frozenset[str], observer: RequestObserver) -> FastAPI:
    """The application. key_hashes: SHA-256 of the bearer tokens that open /v1; none = open to all."""
    app = FastAPIOffline(  # a FastAPI whose /docs has its scripts here, not on a CDN
        title="nvg",
        version=__version__,
        summary="Next visual granularity generation over HTTP, after the OpenAI Images API.",
        redoc_url=None,
        static_url="/docs/files",
    )
    limit = int(service.config.max_body_mb * 1e6)
    app.add_middleware(Guard, key_hashes=key_hashes, max_body=limit, observer=observer)
    if service.config.allowed_origins:  # around the guard, so that pages can read its refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    _handle_errors(app)
    for router in (image_routes(service), model_routes(service), operation_routes(service)):
        app.include_router(router)
    _pages(app)
    app.openapi = lambda: _openapi(app, secured=bool(key_hashes))  # type: ignore[method-assign]
    return app


# ---- pages ----


def _pages(app: FastAPI) -> None:
    """The studio, and the page that opens it."""
    app.mount("/studio", StaticFiles(directory=STUDIO))

    @app.get("/", include_in_schema=False)
    async def studio() -> FileResponse:
        return FileResponse(STUDIO / "index.html", headers={"Content-Security-Policy": STUDIO_POLICY})


STUDIO_POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'"


# ---- errors ----


def _handle_errors(app: FastAPI) -> None:
    """Every error leaves as the OpenAI API writes errors (RequestError.body)."""

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fields = [_field(fault["loc"]) for fault in error.errors()]
        name = fields[0]
        reasons = [fault["msg"] for fault, field in zip(error.errors(), fields, strict=True) if field == name]
        message = "; or ".join(dict.fromkeys(reasons))  # a field of several types has a complaint of each
        return JSONResponse(RequestError(400, f"{name}: {message}" if name else message, param=name).body, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(RequestError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(RequestError(500, "the server failed; its log has the reason").body, 500)


def _field(location: Sequence[str | int]) -> str | None:
    """The field that a location of a validation error names, None for the body as a whole."""
    names = [str(name) for name in location if name != "body"]
    return names[0] if names else None


# ---- OpenAPI ----


def _openapi(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI document as this server behaves: errors of validation are 400, and 401 needs keys."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            tags=[{"name": "images"}, {"name": "models"}, {"name": "operation"}],
        )
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # ours are 400, as the OpenAI API's
                if secured and path.startswith("/v1/"):
                    operation["security"] = [{"bearer": []}]
                if not secured:
                    operation["responses"].pop("401", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        if secured:
            document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = jsonable_encoder(document)
    return app.openapi_schema
