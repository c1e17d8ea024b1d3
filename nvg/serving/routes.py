"""The routes of the HTTP API, a router for each group: images, models, operation."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from nvg.config import ServeConfig
from nvg.generator import Given
from nvg.serving import schemas
from nvg.serving.answers import answer
from nvg.serving.engine import Engine, Served
from nvg.serving.errors import RequestError
from nvg.serving.images import open_drawing
from nvg.serving.requests import encode, given_in, given_in_edit, plan, read_image

Responses = dict[int | str, dict[str, Any]]  # status -> its description, as FastAPI takes them


@dataclass
class Service:
    """The engine, the settings and the model behind the routes. The model may be exchanged while requests come."""

    engine: Engine
    config: ServeConfig
    model: Served


# ---- responses, as the OpenAPI document describes them ----

ERRORS = {
    400: "A field is wrong; `param` names it.",
    401: "A bearer token is needed, or this one is not known.",
    404: "No such model.",
    413: "The request or its image is too large.",
    429: "Too many images wait; Retry-After says for how many seconds.",
    500: "The sampler failed; the server's log has the reason.",
}
EVENT = {  # its data is the JSON of PartialImageEvent, CompletedEvent or Error
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
EXAMPLE_EVENTS = (
    'event: image_generation.partial_image\ndata: {"type": "image_generation.partial_image", "b64_json": "...", '
    '"partial_image_index": 0, ...}\n\nevent: image_generation.completed\ndata: {"type": '
    '"image_generation.completed", "b64_json": "...", ...}\n\n'
)


def _errors(*statuses: int) -> Responses:
    return {status: {"model": schemas.Error, "description": ERRORS[status]} for status in statuses}


def _edit_body() -> dict[str, Any]:
    """The multipart body of an edit: the fields of EditRequest and two files."""
    schema = schemas.EditRequest.model_json_schema()
    for name, description in (
        ("image", "The reference: its structure, or structure and content, is kept up to a stage."),
        ("mask", "A drawn binary structure: alpha where there is some, else dark and bright."),
    ):
        schema["properties"][name] = {"type": "string", "format": "binary", "description": description}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


DRAWING: Responses = {
    **_errors(400, 401, 404, 413, 429, 500),
    200: {"content": {"text/event-stream": {"schema": EVENT, "example": EXAMPLE_EVENTS}}},
}

# ---- images ----


def image_routes(service: Service) -> APIRouter:
    """POST /v1/images/generations and /v1/images/edits."""
    router = APIRouter(prefix="/v1/images", tags=["images"])

    @router.post(
        "/generations",
        response_model=schemas.ImagesAnswer,
        responses=DRAWING,
        summary="Draw images of classes",
    )
    async def generate(body: schemas.GenerationRequest) -> Response:
        model = service.model
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        job = plan(body, prompts, model, service.config, given_in(body, model))
        return await answer(service.engine, job, body, "image_generation")

    @router.post(
        "/edits",
        response_model=schemas.ImagesAnswer,
        responses=DRAWING,
        summary="Draw images in the structure of another one, or of a drawing",
        openapi_extra={"requestBody": _edit_body()},
    )
    async def edit(request: Request) -> Response:
        model = service.model
        body, files = await _form(request)
        job = plan(body, [body.prompt], model, service.config, None)
        service.engine.require_room(len(job.classes))  # before a large upload is decoded for nothing
        job.given = await _given_in_files(service, model, body, files)
        return await answer(service.engine, job, body, "image_edit")

    return router


async def _given_in_files(service: Service, model: Served, body: schemas.EditRequest, files: dict[str, bytes]) -> Given:
    """The stages that an edit's files give: those of the reference image, of the mask, or of both."""
    engine, config = service.engine, service.config
    reference = mask = None
    if "mask" in files:
        mask = await asyncio.to_thread(open_drawing, files["mask"], max_pixels=config.max_upload_pixels, field="mask")
    if "image" in files:
        image = await asyncio.to_thread(read_image, files["image"], model, config)
        reference = await engine.call(lambda: encode(image, model))
    return given_in_edit(body, reference, mask, model)


async def _form(request: Request) -> tuple[schemas.EditRequest, dict[str, bytes]]:
    """The fields and files of a multipart request. Raises RequestError, RequestValidationError."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise RequestError(400, f"edits are multipart/form-data, not {content_type or 'without a content type'}")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=2, max_fields=32) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")  # clients send one image as image or as image[]
            if value == "" or (isinstance(value, UploadFile) and not value.filename and not value.size):
                continue  # a page's form sends what was not filled in
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


# ---- models ----


def model_routes(service: Service) -> APIRouter:
    """GET /v1/models and /v1/models/{name}."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", response_model=schemas.ModelList, responses=_errors(401))
    async def models() -> schemas.ModelList:
        """The served model."""
        return schemas.ModelList(data=[_describe(service)])

    @router.get("/{name}", response_model=schemas.Model, responses=_errors(400, 401, 404))
    async def model(name: Annotated[str, PathParameter(max_length=200)]) -> schemas.Model:
        """The served model, by its id."""
        if name != service.model.name:
            raise RequestError(404, f"no model {name!r} is served here, but {service.model.name!r}", param="model")
        return _describe(service)

    return router


def _describe(service: Service) -> schemas.Model:
    model = service.model
    sampler, tokenizer = model.sampler, model.sampler.tokenizer.config
    return schemas.Model(
        id=model.name,
        created=model.created,
        nvg=schemas.ModelExtension(
            fingerprint=model.fingerprint,
            licence=model.licence,
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


# ---- operation ----


def operation_routes(service: Service) -> APIRouter:
    """GET /healthz and /readyz."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", response_model=schemas.Health)
    async def healthz() -> schemas.Health:
        """The process answers."""
        return schemas.Health(status="ok")

    @router.get(
        "/readyz",
        response_model=schemas.Health,
        responses={503: {"model": schemas.Health, "description": "Not ready; `reason` says why."}},
    )
    async def readyz() -> schemas.Health | JSONResponse:
        """Images are being drawn, and the queue has room."""
        engine = service.engine
        if not engine.alive:
            return _not_ready("the engine has stopped")
        if engine.queued >= engine.max_queue:
            return _not_ready(f"{engine.queued} images wait")
        return schemas.Health(status="ok")

    return router


def _not_ready(reason: str) -> JSONResponse:
    return JSONResponse(schemas.Health(status="not ready", reason=reason).model_dump(), 503)
