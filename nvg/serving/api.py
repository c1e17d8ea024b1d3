"""The HTTP routes, after the OpenAI Images API, as a FastAPI application around an engine. Imports no Ray."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from nvg.config import ServeConfig
from nvg.serving import schemas
from nvg.serving.answers import answer
from nvg.serving.engine import Engine, Served
from nvg.serving.errors import RequestError
from nvg.serving.guard import Guard, Observer
from nvg.serving.images import open_drawing
from nvg.serving.requests import encode, given_in, given_in_edit, plan, read_image

STUDIO = Path(__file__).with_name("studio")


@dataclass
class Service:
    """What the routes need."""

    engine: Engine
    config: ServeConfig
    model: Served


def create_app(service: Service, *, key_hashes: frozenset[str], observer: Observer) -> FastAPI:
    """The application. key_hashes: SHA-256 of the bearer tokens that open /v1; none = open to all."""
    app = FastAPIOffline(  # a FastAPI whose /docs has its scripts here, not on a CDN
        title="nvg",
        version=version("nvg"),
        summary="Next visual granularity generation over HTTP, after the OpenAI Images API.",
        redoc_url=None,
        static_url="/docs/files",
    )
    limit = int(service.config.max_body_mb * 1e6)
    app.add_middleware(Guard, key_hashes=key_hashes, max_body=limit, observer=observer)
    _handle_errors(app)
    _routes(app, service)
    _pages(app)
    app.openapi = lambda: _openapi(app, secured=bool(key_hashes))  # type: ignore[method-assign]
    return app


# ---- routes ----

# Of one event; its data is the JSON of PartialImageEvent, CompletedEvent or Error.
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
EXAMPLE_EVENTS = (
    'event: image_generation.partial_image\ndata: {"type": "image_generation.partial_image", "b64_json": "...", '
    '"partial_image_index": 0, ...}\n\nevent: image_generation.completed\ndata: {"type": '
    '"image_generation.completed", "b64_json": "...", ...}\n\n'
)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "A field is wrong; `param` names it.",
        401: "A bearer token is needed, or this one is not known.",
        404: "No such model.",
        413: "The request or its image is too large.",
        429: "Too many images wait; Retry-After says for how many seconds.",
        500: "The sampler failed; the server's log has the reason.",
    }
    return {status: {"model": schemas.Error, "description": words[status]} for status in statuses}


def _routes(app: FastAPI, service: Service) -> None:
    stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": EVENT, "example": EXAMPLE_EVENTS}}}
    }
    drawing = _errors(400, 401, 404, 413, 429, 500) | stream

    @app.post(
        "/v1/images/generations",
        response_model=schemas.ImagesAnswer,
        responses=drawing,
        tags=["images"],
        summary="Draw images of classes",
    )
    async def generate(body: schemas.GenerationRequest) -> Any:
        model = service.model
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        job = plan(body, prompts, model, service.config, given_in(body, model))
        return await answer(service.engine, job, body, "image_generation")

    @app.post(
        "/v1/images/edits",
        response_model=schemas.ImagesAnswer,
        responses=drawing,
        tags=["images"],
        summary="Draw images in the structure of another one, or of a drawing",
        openapi_extra={"requestBody": _edit_body()},
    )
    async def edit(request: Request) -> Any:
        model = service.model
        body, files = await _form(request)
        job = plan(body, [body.prompt], model, service.config, None)
        engine, config = service.engine, service.config
        engine.require_room(len(job.classes))  # before a large upload is decoded for nothing
        reference = mask = None
        if "mask" in files:
            mask = await asyncio.to_thread(
                open_drawing, files["mask"], max_pixels=config.max_upload_pixels, field="mask"
            )
        if "image" in files:
            image = await asyncio.to_thread(read_image, files["image"], model, config)
            reference = await engine.call(lambda: encode(image, model))
        job.given = given_in_edit(body, reference, mask, model)
        return await answer(service.engine, job, body, "image_edit")

    @app.get("/v1/models", response_model=schemas.ModelList, responses=_errors(401), tags=["models"])
    async def models() -> Any:
        """The served model."""
        return schemas.ModelList(data=[_describe(service)])

    @app.get("/v1/models/{name}", response_model=schemas.Model, responses=_errors(400, 401, 404), tags=["models"])
    async def model(name: Annotated[str, PathParameter(max_length=200)]) -> Any:
        """The served model, by its id."""
        if name != service.model.name:
            raise RequestError(404, f"no model {name!r} is served here, but {service.model.name!r}", param="model")
        return _describe(service)

    @app.get("/healthz", response_model=schemas.Health, tags=["operation"])
    async def healthz() -> Any:
        """The process answers."""
        return schemas.Health(status="ok")

    @app.get(
        "/readyz",
        response_model=schemas.Health,
        tags=["operation"],
        responses={503: {"model": schemas.Health, "description": "Not ready; `reason` says why."}},
    )
    async def readyz() -> Any:
        """Images are being drawn, and the queue has room."""
        engine = service.engine
        reason = None
        if not engine.alive:
            reason = "the engine has stopped"
        elif engine.queued >= engine.max_queue:
            reason = f"{engine.queued} images wait"
        if reason is None:
            return schemas.Health(status="ok")
        return JSONResponse(schemas.Health(status="not ready", reason=reason).model_dump(), 503)


async def _form(request: Request) -> tuple[schemas.EditRequest, dict[str, bytes]]:
    """The fields and files of a multipart request. Raises RequestError, RequestValidationError."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise RequestError(400, f"edits are multipart/form-data, not {kind or 'without a content type'}")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=2, max_fields=32) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")  # clients send one image as image or as image[]
            if name in fields or name in files:
                raise RequestError(400, f"{name} is given twice; this API takes one", param=name)
            if isinstance(value, UploadFile) and name in ("image", "mask"):
                files[name] = await value.read()
            elif isinstance(value, UploadFile):
                raise RequestError(400, f"no file field {name!r}; there are image and mask", param=name)
            elif name in ("image", "mask"):
                raise RequestError(400, f"{name} must be a file, not text: no path or URL is read", param=name)
            else:
                fields[name] = value
    try:
        return schemas.EditRequest.model_validate(fields), files
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _describe(service: Service) -> schemas.Model:
    model = service.model
    sampler, tokenizer = model.sampler, model.sampler.tokenizer.config
    return schemas.Model(
        id=model.name,
        created=model.created,
        nvg=schemas.ModelExtension(
            fingerprint=model.fingerprint,
            classes=sampler.class_names,
            image_size=tokenizer.image_size,
            channels=tokenizer.channels,
            grid=tokenizer.grid,
            last_stage=tokenizer.last_stage,
            codebook_size=tokenizer.codebook_size,
            settings=dataclasses.asdict(sampler.settings),
            max_images=service.config.max_images,
        ),
    )


# ---- pages ----


def _pages(app: FastAPI) -> None:
    app.mount("/studio", StaticFiles(directory=STUDIO))

    @app.get("/", include_in_schema=False)
    async def studio() -> FileResponse:
        return FileResponse(STUDIO / "index.html", headers={"Content-Security-Policy": STUDIO_POLICY})


STUDIO_POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'"


# ---- errors ----


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        places = [[str(part) for part in fault["loc"] if part != "body"] for fault in error.errors()]
        name = places[0][0] if places[0] else None
        words = [
            fault["msg"] for fault, place in zip(error.errors(), places, strict=True) if place[:1] == places[0][:1]
        ]
        message = "; or ".join(dict.fromkeys(words))  # a field of several types has a complaint of each
        return JSONResponse(RequestError(400, f"{name}: {message}" if name else message, param=name).body, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(RequestError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(RequestError(500, "the server failed; its log has the reason").body, 500)


# ---- OpenAPI ----


def _edit_body() -> dict[str, Any]:
    schema = schemas.EditRequest.model_json_schema()
    for name, words in (
        ("image", "The reference: its structure, or structure and content, is kept up to a stage."),
        ("mask", "A drawn binary structure: alpha where there is some, else dark and bright."),
    ):
        schema["properties"][name] = {"type": "string", "format": "binary", "description": words}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _openapi(app: FastAPI, *, secured: bool) -> dict[str, Any]:
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
