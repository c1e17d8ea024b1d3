"""From what the engine draws to what goes out: answers, events, and the PNGs in them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from nvg.serving import schemas
from nvg.serving.engine import Engine, ImageDone, Job, StageDone
from nvg.serving.errors import RequestError
from nvg.serving.images import base64_text, to_png
from nvg.serving.requests import scale_of

Kind = Literal["image_generation", "image_edit"]
NO_STORE = {"Cache-Control": "no-store"}


async def answer(engine: Engine, job: Job, request: schemas.Common, kind: Kind) -> Response:
    """Draw a job: its images when all are there, or events as they come. Raises RequestError."""
    scale = scale_of(request, job.model.sampler.tokenizer.config.image_size)
    engine.submit(job)
    if request.stream:
        return StreamingResponse(_events(engine, job, scale, kind), media_type="text/event-stream", headers=NO_STORE)
    done: list[ImageDone] = []
    async with aclosing(engine.results(job)) as results:
        async for result in results:
            if isinstance(result, ImageDone):
                done.append(result)
    done.sort(key=lambda result: result.index)
    pictures = await asyncio.to_thread(lambda: [base64_text(_png(job, result, scale)) for result in done])
    as_url = request.response_format == "url"
    data = [
        schemas.Image(
            b64_json=None if as_url else picture,
            url=f"data:image/png;base64,{picture}" if as_url else None,
            nvg=_of_image(job, result),
        )
        for picture, result in zip(pictures, done, strict=True)
    ]
    whole = schemas.ImagesAnswer(
        created=int(time.time()), data=data, size=_size(job, scale), usage=_usage(job, len(done)), nvg=_of_answer(job)
    )
    return Response(whole.model_dump_json(exclude_none=True), media_type="application/json", headers=NO_STORE)


async def _events(engine: Engine, job: Job, scale: int, kind: Kind) -> AsyncIterator[str]:
    """Server-sent events: partial images as their stages end, and each image when it is finished."""
    sent = [0] * len(job.classes)
    try:
        async with aclosing(engine.results(job)) as results:
            async for result in results:
                event: BaseModel
                if isinstance(result, StageDone):
                    picture = await asyncio.to_thread(to_png, result.preview, scale=scale)
                    extension = schemas.StageExtension(
                        image_index=result.index, stage=result.stage, structure=result.structure.tolist()
                    )
                    event = schemas.PartialImageEvent(
                        type=f"{kind}.partial_image",  # type: ignore[arg-type]
                        b64_json=base64_text(picture),
                        partial_image_index=sent[result.index],
                        created_at=int(time.time()),
                        size=_size(job, scale),
                        nvg=extension,
                    )
                    sent[result.index] += 1
                else:
                    picture = await asyncio.to_thread(_png, job, result, scale)
                    values = _of_answer(job).model_dump() | _of_image(job, result).model_dump()
                    event = schemas.CompletedEvent(
                        type=f"{kind}.completed",  # type: ignore[arg-type]
                        b64_json=base64_text(picture),
                        created_at=int(time.time()),
                        size=_size(job, scale),
                        usage=_usage(job, 1),
                        nvg=schemas.CompletedExtension(image_index=result.index, **values),
                    )
                name = event.type  # type: ignore[attr-defined]
                yield f"event: {name}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
    except RequestError as error:  # the status line has gone out already
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"


def _png(job: Job, result: ImageDone, scale: int) -> bytes:
    """The finished picture, with the request that makes it again in its text chunk."""
    size = job.model.sampler.tokenizer.config.image_size * scale
    request: dict[str, Any] = {
        "prompt": job.model.sampler.class_names[job.classes[result.index]],
        "seed": job.seeds[result.index],
        "size": f"{size}x{size}",
        **dataclasses.asdict(job.settings),
    }
    if job.given is not None:
        stages, last = job.given.structure_stages, job.model.sampler.last_stage
        if stages:
            request |= {"structure": (result.structure >> (last - stages)).tolist(), "keep_stages": stages}
        if job.given.content_stages:
            request |= {"content": result.content[: job.given.content_stages]}
    made_by = {"model": job.model.name, "fingerprint": job.model.fingerprint, "request": request}
    return to_png(result.pixels, scale=scale, made_by=made_by)


def _size(job: Job, scale: int) -> str:
    side = job.model.sampler.tokenizer.config.image_size * scale
    return f"{side}x{side}"


def _of_image(job: Job, result: ImageDone) -> schemas.ImageExtension:
    index = job.classes[result.index]
    return schemas.ImageExtension(
        class_index=index,
        class_name=job.model.sampler.class_names[index],
        seed=job.seeds[result.index],
        structure=result.structure.tolist(),
        content=result.content,
    )


def _of_answer(job: Job) -> schemas.AnswerExtension:
    now = time.perf_counter()
    timings = schemas.Timings(
        queued_ms=round(1000 * (job.began - job.arrived), 2),
        sampling_ms=round(1000 * (job.ended - job.began), 2),
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
    output = images * (2 ** (job.model.sampler.last_stage + 1) - 1)
    details = schemas.TokenDetails(image_tokens=0, text_tokens=images)
    return schemas.Usage(
        input_tokens=images, input_tokens_details=details, output_tokens=output, total_tokens=images + output
    )
