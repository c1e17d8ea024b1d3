"""From the engine's results to HTTP: answers, events, and the PNGs in them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi.responses import Response, StreamingResponse

from nvg.serving import schemas
from nvg.serving.engine import Engine, ImageDone, Job, StageDone
from nvg.serving.errors import RequestError
from nvg.serving.images import base64_text, to_png
from nvg.serving.requests import scale_of

Kind = Literal["image_generation", "image_edit"]
NO_STORE = {"Cache-Control": "no-store"}


async def answer(engine: Engine, job: Job, request: schemas.Common, kind: Kind) -> Response:
    """Draw a job. The answer holds its images when all are drawn, or streams events. Raises RequestError."""
    scale = scale_of(request, job.model.sampler.tokenizer.config.image_size)
    engine.submit(job)
    if request.stream:
        return StreamingResponse(_events(engine, job, scale, kind), media_type="text/event-stream", headers=NO_STORE)
    async with aclosing(engine.results(job)) as results:
        images = [result async for result in results if isinstance(result, ImageDone)]
    images.sort(key=lambda image: image.index)
    pictures = await asyncio.to_thread(lambda: [base64_text(_png(job, image, scale)) for image in images])
    as_url = request.response_format == "url"
    data = [
        schemas.Image(
            b64_json=None if as_url else picture,
            url=f"data:image/png;base64,{picture}" if as_url else None,
            nvg=_image_extension(job, image),
        )
        for picture, image in zip(pictures, images, strict=True)
    ]
    whole = schemas.ImagesAnswer(
        created=int(time.time()),
        data=data,
        size=_size(job, scale),
        usage=_usage(job, len(images)),
        nvg=_answer_extension(job),
    )
    return Response(whole.model_dump_json(exclude_none=True), media_type="application/json", headers=NO_STORE)


async def _events(engine: Engine, job: Job, scale: int, kind: Kind) -> AsyncIterator[str]:
    """Server-sent events: partial images as their stages end, and each image when it is finished."""
    partial_images = [0] * len(job.classes)  # sent of each image
    try:
        async with aclosing(engine.results(job)) as results:
            async for result in results:
                event: schemas.PartialImageEvent | schemas.CompletedEvent
                if isinstance(result, StageDone):
                    number = partial_images[result.index]
                    event = await _partial_event(job, result, number, scale, kind)
                    partial_images[result.index] += 1
                else:
                    event = await _completed_event(job, result, scale, kind)
                yield f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
    except RequestError as error:  # the status line has gone out already
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"


async def _partial_event(job: Job, stage: StageDone, number: int, scale: int, kind: Kind) -> schemas.PartialImageEvent:
    """The event of an image after a stage; number: of the partial images of this image, from 0."""
    picture = await asyncio.to_thread(to_png, stage.preview, scale=scale)
    return schemas.PartialImageEvent(
        type=f"{kind}.partial_image",  # type: ignore[arg-type]
        b64_json=base64_text(picture),
        partial_image_index=number,
        created_at=int(time.time()),
        size=_size(job, scale),
        nvg=schemas.StageExtension(image_index=stage.index, stage=stage.stage, structure=stage.structure.tolist()),
    )


async def _completed_event(job: Job, image: ImageDone, scale: int, kind: Kind) -> schemas.CompletedEvent:
    """The event of a finished image."""
    picture = await asyncio.to_thread(_png, job, image, scale)
    values = _answer_extension(job).model_dump() | _image_extension(job, image).model_dump()
    return schemas.CompletedEvent(
        type=f"{kind}.completed",  # type: ignore[arg-type]
        b64_json=base64_text(picture),
        created_at=int(time.time()),
        size=_size(job, scale),
        usage=_usage(job, 1),
        nvg=schemas.CompletedExtension(image_index=image.index, **values),
    )


def _png(job: Job, image: ImageDone, scale: int) -> bytes:
    """The finished picture, with the request that makes it again in its text chunk."""
    size = job.model.sampler.tokenizer.config.image_size * scale
    request: dict[str, Any] = {
        "prompt": job.model.sampler.class_names[job.classes[image.index]],
        "seed": job.seeds[image.index],
        "size": f"{size}x{size}",
        **dataclasses.asdict(job.settings),
    }
    if job.given is not None:
        stage, last = job.given.structure_stages, job.model.sampler.last_stage
        if stage:
            request |= {"structure": (image.structure >> (last - stage)).tolist(), "keep_stages": stage}
        if job.given.content_stages:
            request |= {"content": image.content[: job.given.content_stages]}
    made_by = {"model": job.model.name, "fingerprint": job.model.fingerprint, "request": request}
    return to_png(image.pixels, scale=scale, made_by=made_by)


def _size(job: Job, scale: int) -> str:
    """The size of the pictures, as the API writes it: 64x64."""
    side = job.model.sampler.tokenizer.config.image_size * scale
    return f"{side}x{side}"


def _image_extension(job: Job, image: ImageDone) -> schemas.ImageExtension:
    """The class, seed, structure and content of an image."""
    index = job.classes[image.index]
    return schemas.ImageExtension(
        class_index=index,
        class_name=job.model.sampler.class_names[index],
        seed=job.seeds[image.index],
        structure=image.structure.tolist(),
        content=image.content,
    )


def _answer_extension(job: Job) -> schemas.AnswerExtension:
    """The model, settings and timings of a job."""
    now = time.perf_counter()
    timings = schemas.Timings(
        queued_ms=round(1000 * (job.sampling_start - job.arrived), 2),
        sampling_ms=round(1000 * (job.sampling_end - job.sampling_start), 2),
        total_ms=round(1000 * (now - job.arrived), 2),
        batches=job.batches,
    )
    return schemas.AnswerExtension(
        model=job.model.name,
        fingerprint=job.model.fingerprint,
        seed=job.seeds[0],
        settings=dataclasses.asdict(job.settings),
        moved=int(job.given.moved[0]) if job.given is not None else None,
        timings=timings,
    )


def _usage(job: Job, images: int) -> schemas.Usage:
    """The tokens of a number of images: one text token of each prompt, the content tokens of all stages."""
    output = images * (2 ** (job.model.sampler.last_stage + 1) - 1)
    details = schemas.TokenDetails(image_tokens=0, text_tokens=images)
    return schemas.Usage(
        input_tokens=images, input_tokens_details=details, output_tokens=output, total_tokens=images + output
    )
