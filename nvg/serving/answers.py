"""From the engine's results to HTTP: answers, events, and the PNGs in them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.responses import Response, StreamingResponse

from nvg.generator import Sampler
from nvg.serving import schemas
from nvg.serving.engine import Engine, ImageDone, Job, StageDone
from nvg.serving.errors import RequestError
from nvg.serving.images import Output, base64_text, encoded
from nvg.serving.requests import output_of

Kind = Literal["image_generation", "image_edit"]
NO_STORE = {"Cache-Control": "no-store"}


async def answer(engine: Engine, job: Job, request: schemas.Common, kind: Kind) -> Response:
    """Draw a job. The answer holds its images when all are drawn, or streams events. Raises RequestError."""
    output = output_of(request, job.model.sampler.tokenizer.config.image_size)
    drawn = Drawn(job, output, request.not_used, kind)
    engine.submit(job)
    if request.stream:
        return StreamingResponse(_events(engine, drawn), media_type="text/event-stream", headers=NO_STORE)
    async with aclosing(engine.results(job)) as results:
        images = [result async for result in results if isinstance(result, ImageDone)]
    images.sort(key=lambda image: image.index)
    pictures = await asyncio.to_thread(lambda: [base64_text(drawn.picture(image)) for image in images])
    as_url = request.response_format == "url"
    data = [
        schemas.Image(
            b64_json=None if as_url else picture,
            url=f"data:image/{output.format};base64,{picture}" if as_url else None,
            nvg=_image_extension(job, image),
        )
        for picture, image in zip(pictures, images, strict=True)
    ]
    whole = schemas.ImagesAnswer(
        created=int(time.time()),
        data=data,
        output_format=request.output_format,
        size=drawn.size,
        usage=_usage(job, len(images)),
        nvg=drawn.extension(),
    )
    return Response(whole.model_dump_json(exclude_none=True), media_type="application/json", headers=NO_STORE)


@dataclass(frozen=True)
class Drawn:
    """A job whose pictures leave in an answer or in events."""

    job: Job
    output: Output
    not_used: list[str]  # fields of the request
    kind: Kind

    @property
    def size(self) -> str:
        """The size of the pictures, as the API writes it: 64x64."""
        side = self.job.model.sampler.tokenizer.config.image_size * self.output.scale
        return f"{side}x{side}"

    def common(self) -> dict[str, Any]:
        """What every event tells of its picture."""
        return {"output_format": self.output.format, "created_at": int(time.time()), "size": self.size}

    def picture(self, image: ImageDone) -> bytes:
        """The finished picture; a PNG has the request that makes it again in its text chunk."""
        job = self.job
        request: dict[str, Any] = {
            "prompt": prompt_of(job.model.sampler, job.classes[image.index]),
            "seed": job.seeds[image.index],
            "size": self.size,
            **dataclasses.asdict(job.settings),
        }
        if job.given is not None:
            stage, last = job.given.structure_stages, job.model.sampler.last_stage
            if stage:
                request |= {"structure": (image.structure >> (last - stage)).tolist(), "keep_stages": stage}
            if job.given.content_stages:
                request |= {"content": image.content[: job.given.content_stages]}
        made_by = {"model": job.model.name, "fingerprint": job.model.fingerprint, "request": request}
        return encoded(image.pixels, self.output, made_by)

    def extension(self) -> schemas.AnswerExtension:
        """The model, settings and timings of the job."""
        job, now = self.job, time.perf_counter()
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
            not_used=self.not_used,
            timings=timings,
        )


def prompt_of(sampler: Sampler, index: int) -> str | int:
    """The prompt that draws a class: its name where that is a prompt and no other class has it, else its index."""
    name = sampler.class_names[index]
    is_prompt = 1 <= len(name) <= schemas.MAX_PROMPT and sampler.class_names.count(name) == 1
    return name if is_prompt else index


async def _events(engine: Engine, drawn: Drawn) -> AsyncIterator[str]:
    """Server-sent events: partial images as their stages end, and each image when it is finished."""
    partial_images = [0] * len(drawn.job.classes)  # sent of each image
    try:
        async with aclosing(engine.results(drawn.job)) as results:
            async for result in results:
                event: schemas.PartialImageEvent | schemas.CompletedEvent
                if isinstance(result, StageDone):
                    number = partial_images[result.index]
                    event = await _partial_event(drawn, result, number)
                    partial_images[result.index] += 1
                else:
                    event = await _completed_event(drawn, result)
                yield f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
    except RequestError as error:  # the status line has gone out already
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"


async def _partial_event(drawn: Drawn, stage: StageDone, number: int) -> schemas.PartialImageEvent:
    """The event of an image after a stage; number: of the partial images of this image, from 0."""
    picture = await asyncio.to_thread(encoded, stage.preview, drawn.output)
    return schemas.PartialImageEvent(
        type=f"{drawn.kind}.partial_image",  # type: ignore[arg-type]
        b64_json=base64_text(picture),
        partial_image_index=number,
        nvg=schemas.StageExtension(image_index=stage.index, stage=stage.stage, structure=stage.structure.tolist()),
        **drawn.common(),
    )


async def _completed_event(drawn: Drawn, image: ImageDone) -> schemas.CompletedEvent:
    """The event of a finished image."""
    picture = await asyncio.to_thread(drawn.picture, image)
    values = drawn.extension().model_dump() | _image_extension(drawn.job, image).model_dump()
    return schemas.CompletedEvent(
        type=f"{drawn.kind}.completed",  # type: ignore[arg-type]
        b64_json=base64_text(picture),
        usage=_usage(drawn.job, 1),
        nvg=schemas.CompletedExtension(image_index=image.index, **values),
        **drawn.common(),
    )


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


def _usage(job: Job, images: int) -> schemas.Usage:
    """The tokens of a number of images: one text token of each prompt, the content tokens of all stages."""
    output = images * (2 ** (job.model.sampler.last_stage + 1) - 1)
    details = schemas.TokenDetails(image_tokens=0, text_tokens=images)
    return schemas.Usage(
        input_tokens=images, input_tokens_details=details, output_tokens=output, total_tokens=images + output
    )
