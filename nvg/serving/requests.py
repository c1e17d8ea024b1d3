"""From a request's fields to a Job of the engine: everything that depends on the model is checked here."""

from __future__ import annotations

import dataclasses
import secrets

import torch

from nvg.config import DataConfig, SamplerConfig, ServeConfig
from nvg.data.images import make_view, to_float
from nvg.generator import Given
from nvg.generator.controls import given_from_drawing, given_from_sequence
from nvg.granularity import GranularitySequence, codes_from_map, split_codes
from nvg.serving.engine import Job, Served
from nvg.serving.errors import RequestError
from nvg.serving.images import open_upload
from nvg.serving.schemas import MAX_SIDE, Common, EditRequest, GenerationRequest, Settings


def plan(request: Common, prompts: list[str | int], model: Served, config: ServeConfig, given: Given | None) -> Job:
    """The job of a request. Raises RequestError for an unknown class, too many images or another model's name."""
    sampler = model.sampler
    if request.model not in (None, model.name):
        raise RequestError(
            404,
            f"no model {request.model!r} is served here, but {model.name!r}",
            param="model",
            code="model_not_found",
        )
    try:
        classes = [sampler.class_index(prompt) for prompt in prompts for _ in range(request.n)]
    except ValueError as error:
        raise RequestError(400, f"prompt: {error}", param="prompt", code="unknown_class") from None
    if len(classes) > config.max_images:
        raise RequestError(
            400,
            f"{len(prompts)} prompts with n={request.n} are {len(classes)} images, this server draws at most "
            f"{config.max_images} a request",
            param="n",
        )
    settings = settings_of(request, sampler.settings)
    for name in ("structure_guidance", "content_guidance"):
        try:
            sampler.check_guidance(name, getattr(settings, name))
        except ValueError as error:
            raise RequestError(400, str(error), param=name) from None
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Job(
        model,
        classes,
        [(seed + j) % 2**31 for j in range(len(classes))],
        settings,
        given,
        watched_stages(request, sampler.last_stage) if request.stream else frozenset(),
    )


def settings_of(request: Settings, own: SamplerConfig) -> SamplerConfig:
    """The model's own settings, with those of the request over them."""
    names = (item.name for item in dataclasses.fields(SamplerConfig))
    changes = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    return dataclasses.replace(own, **changes)


def watched_stages(request: Common, last: int) -> frozenset[int]:
    """Stages whose previews a stream sends: all, or `partial_images` of them, evenly spread before the last."""
    wanted = request.partial_images
    if wanted is None or wanted > last:
        return frozenset(range(last + 1))
    return frozenset(round((j + 1) * last / (wanted + 1)) for j in range(wanted))


def scale_of(request: Common, image_size: int) -> int:
    """How often a pixel is repeated. Raises RequestError for a size that is no whole multiple of the model's."""
    if request.size == "auto":
        return 1
    width, height = (int(side) for side in request.size.split("x"))
    if width != height or width % image_size or width > max(MAX_SIDE, image_size):
        raise RequestError(
            400,
            f"size={request.size}: this model makes {image_size}x{image_size}, or whole multiples of it up to "
            f"{MAX_SIDE // image_size * image_size}x{MAX_SIDE // image_size * image_size}",
            param="size",
        )
    return width // image_size


# ---- given stages ----


def given_in(request: GenerationRequest, model: Served) -> Given | None:
    """The structure and content that a generation request gives. Raises RequestError naming the field."""
    stages = request.keep_stages or 1
    if request.structure is None:
        if request.keep_stages is not None:
            raise RequestError(
                400, "keep_stages is the stage of a given structure: give structure too", param="structure"
            )
        if not request.content:
            return None
        stages = 0
    codes, moved = _codes(request, stages, model)
    content = _content(request, stages, model)
    return Given(codes, stages, content, moved)


def _codes(request: GenerationRequest, stages: int, model: Served) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, L) codes of a given map of stage `stages`, and how many positions rebalancing moved (1,)."""
    tokenizer = model.sampler.tokenizer.config
    grid, last = tokenizer.grid, tokenizer.last_stage
    if stages == 0:
        return torch.zeros(1, tokenizer.positions, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    assert request.structure is not None
    if stages > last:
        raise RequestError(400, f"keep_stages={stages}: this model's last stage is {last}", param="keep_stages")
    rows = request.structure
    if len({len(row) for row in rows}) != 1:
        raise RequestError(400, "the rows of structure must be equally long", param="structure")
    drawn = torch.tensor(rows)
    if int(drawn.max()) >= 2**stages:
        raise RequestError(
            400,
            f"structure holds {int(drawn.max())}: a map of stage {stages} has numbers below {2**stages}",
            param="structure",
        )
    if stages == 1:
        try:
            given = given_from_drawing(drawn[None].float(), grid)
        except ValueError as error:
            raise RequestError(400, f"structure: {error}", param="structure") from None
        return given.codes, given.moved
    if tuple(drawn.shape) != (grid, grid):
        raise RequestError(
            400,
            f"structure has {drawn.shape[0]} x {drawn.shape[1]} numbers: a map of stage {stages} has this model's "
            f"{grid} x {grid} (only a drawing, keep_stages=1, may have another size)",
            param="structure",
        )
    size = tokenizer.positions >> stages
    counts = drawn.flatten().bincount(minlength=2**stages)
    if (counts != size).any():
        worst = int((counts - size).abs().argmax())
        raise RequestError(
            400,
            f"structure: in a map of stage {stages} every number below {2**stages} stands {size} times, but {worst} "
            f"stands {int(counts[worst])} times",
            param="structure",
        )
    codes = codes_from_map(drawn.flatten()[None], stages)
    if tokenizer.child_order == "raster" and not request.content:
        # A map that somebody drew: the generators know clusters by the names that the tokenizer would give them.
        named = torch.zeros_like(codes)
        for stage in range(1, stages + 1):
            named = split_codes(named, stage, (codes >> (last - stage) & 1).float())
        codes = named
    return codes, torch.zeros(1, dtype=torch.int64)


def _content(request: GenerationRequest, stages: int, model: Served) -> list[torch.Tensor]:
    content = request.content or []
    if len(content) > stages + 1:
        raise RequestError(
            400,
            f"content has {len(content)} stages: with the structure of stage {stages}, content can be kept of at most "
            f"{stages + 1} stages",
            param="content",
        )
    size = model.sampler.tokenizer.config.codebook_size
    for stage, tokens in enumerate(content):
        if len(tokens) != 2**stage:
            raise RequestError(
                400, f"content of stage {stage} has {len(tokens)} tokens, it needs {2**stage}", param="content"
            )
        if max(tokens) >= size:
            raise RequestError(
                400, f"content of stage {stage} holds {max(tokens)}: the codebook has {size} entries", param="content"
            )
    return [torch.tensor(tokens)[None] for tokens in content]


def read_image(data: bytes, model: Served, config: ServeConfig) -> torch.Tensor:
    """A reference image as the encoder takes it: (1, C, H, W) in [-1, 1]. Raises RequestError."""
    tokenizer = model.sampler.tokenizer.config
    view = DataConfig(image_size=tokenizer.image_size, channels=tokenizer.channels)
    upload = open_upload(data, channels=view.channels, max_pixels=config.max_upload_pixels, field="image")
    return to_float(make_view(upload, view, 0, 0, "")[None].copy())  # Pillow's memory is read-only


def encode(image: torch.Tensor, model: Served) -> GranularitySequence:
    """The granularity sequence of an image (1, C, H, W), on the CPU. For the sampler's thread."""
    with torch.inference_mode():
        sequence = model.sampler.tokenizer.encode(image.to(model.sampler.device))
    cpu = torch.device("cpu")
    return GranularitySequence(sequence.codes.to(cpu), [tokens.to(cpu) for tokens in sequence.content])


def given_in_edit(
    request: EditRequest, reference: GranularitySequence | None, mask: torch.Tensor | None, model: Served
) -> Given:
    """What an edit keeps: the drawn structure of a mask (1, H, W), or stages of a reference (its first content too).

    Raises RequestError naming the field.
    """
    tokenizer = model.sampler.tokenizer.config
    last, stages = tokenizer.last_stage, request.keep_stages
    if stages is not None and stages > last:
        raise RequestError(400, f"keep_stages={stages}: this model's last stage is {last}", param="keep_stages")
    if mask is not None and stages not in (None, 1):
        words = "a mask is the structure of stage 1: leave keep_stages out, or leave the mask out"
        raise RequestError(400, words, param="keep_stages")
    if stages is None:
        stages = 1 if mask is not None else last
    # Beside a mask an image can give its first stage's content alone, which belongs to no structure.
    most = 0 if reference is None else 1 if mask is not None else stages + 1
    if request.keep_content > most:
        words = f"keep_content={request.keep_content}: with what is given here at most {most}"
        raise RequestError(400, words, param="keep_content")
    kept = list(reference.content[: request.keep_content]) if reference is not None else []
    if mask is not None:
        try:
            return dataclasses.replace(given_from_drawing(mask, tokenizer.grid), content=kept)
        except ValueError as error:
            raise RequestError(400, f"mask: {error}", param="mask") from None
    if reference is None:
        raise RequestError(400, "give image (a reference), mask (a drawn structure) or both", param="image")
    return given_from_sequence(reference, structure_stages=stages, content_stages=request.keep_content)
