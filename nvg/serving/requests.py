"""From a request's fields to a Job of the engine: everything that depends on the model is checked here."""

from __future__ import annotations

import dataclasses
import secrets

import torch

from nvg.config import SEEDS, DataConfig, SamplerConfig, ServeConfig
from nvg.data.images import make_view, to_float
from nvg.generator import Given, image_seeds
from nvg.generator.controls import given_from_drawing, given_from_sequence
from nvg.granularity import GranularitySequence, codes_from_map, raster_codes
from nvg.serving.engine import Job, Served
from nvg.serving.errors import RequestError
from nvg.serving.images import Output, open_upload
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
    seed = secrets.randbelow(int(SEEDS.most or 0) + 1) if request.seed is None else request.seed
    return Job(
        model,
        classes,
        image_seeds(seed, len(classes)),
        settings,
        given,
        watched_stages(request, sampler.last_stage) if request.stream else frozenset(),
    )


def settings_of(request: Settings, default: SamplerConfig) -> SamplerConfig:
    """The model's settings, with those of the request over them."""
    names = (item.name for item in dataclasses.fields(SamplerConfig))
    changes = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    return dataclasses.replace(default, **changes)


def watched_stages(request: Common, last: int) -> frozenset[int]:
    """Stages whose previews a stream sends: all, or `partial_images` of them, evenly spread before the last."""
    count = request.partial_images
    if count is None or count > last:
        return frozenset(range(last + 1))
    return frozenset(round((j + 1) * last / (count + 1)) for j in range(count))


def output_of(request: Common, image_size: int) -> Output:
    """How the pictures of a request leave. Raises RequestError for a size that cannot be."""
    return Output(scale_of(request, image_size), request.output_format, request.output_compression)


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
    positions = model.sampler.tokenizer.config.positions
    if request.structure is not None:
        stage = request.keep_stages or 1
        codes, moved = _codes(request.structure, stage, model, rename=not request.content)
    elif request.keep_stages is not None:
        raise RequestError(400, "keep_stages is the stage of a given structure: give structure too", param="structure")
    elif not request.content:
        return None
    else:
        stage = 0
        codes, moved = torch.zeros(1, positions, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return Given(codes, stage, _content(request.content or [], stage, model), moved)


def _codes(rows: list[list[int]], stage: int, model: Served, *, rename: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, L) codes of a given map of `stage`, and the number of positions that rebalancing moved (1,).

    rename: clusters get the names that the tokenizer would give them.
    """
    tokenizer = model.sampler.tokenizer.config
    if stage > tokenizer.last_stage:
        raise RequestError(
            400, f"keep_stages={stage}: this model's last stage is {tokenizer.last_stage}", param="keep_stages"
        )
    structure = _map_of_rows(rows, stage)
    if stage == 1:
        try:
            given = given_from_drawing(structure[None].float(), tokenizer.grid)
        except ValueError as error:
            raise RequestError(400, f"structure: {error}", param="structure") from None
        return given.codes, given.moved
    _check_map(structure, stage, tokenizer.grid)
    codes = codes_from_map(structure.flatten()[None], stage)
    if tokenizer.child_order == "raster" and rename:
        # A map that somebody drew: the generators know clusters by the names that the tokenizer would give them.
        codes = raster_codes(codes, stage)
    return codes, torch.zeros(1, dtype=torch.int64)


def _map_of_rows(rows: list[list[int]], stage: int) -> torch.Tensor:
    """A given structure (H, W), its numbers those of a map of `stage`. Raises RequestError."""
    if len({len(row) for row in rows}) != 1:
        raise RequestError(400, "the rows of structure must be equally long", param="structure")
    structure = torch.tensor(rows)
    if int(structure.max()) >= 2**stage:
        raise RequestError(
            400,
            f"structure holds {int(structure.max())}: a map of stage {stage} has numbers below {2**stage}",
            param="structure",
        )
    return structure


def _check_map(structure: torch.Tensor, stage: int, grid: int) -> None:
    """Raises RequestError for a map that is not on the grid, or whose clusters are not of one size."""
    if tuple(structure.shape) != (grid, grid):
        raise RequestError(
            400,
            f"structure has {structure.shape[0]} x {structure.shape[1]} numbers: a map of stage {stage} has this "
            f"model's {grid} x {grid} (only a drawing, keep_stages=1, may have another size)",
            param="structure",
        )
    size = grid**2 >> stage
    counts = structure.flatten().bincount(minlength=2**stage)
    if (counts != size).any():
        worst = int((counts - size).abs().argmax())
        raise RequestError(
            400,
            f"structure: in a map of stage {stage} every number below {2**stage} stands {size} times, but {worst} "
            f"stands {int(counts[worst])} times",
            param="structure",
        )


def _content(content: list[list[int]], stage: int, model: Served) -> list[torch.Tensor]:
    """Given content tokens, with the structure of `stage`: (1, 2^i) for each stage i. Raises RequestError."""
    if len(content) > stage + 1:
        raise RequestError(
            400,
            f"content has {len(content)} stages: with the structure of stage {stage}, content can be kept of at most "
            f"{stage + 1} stages",
            param="content",
        )
    size = model.sampler.tokenizer.config.codebook_size
    for content_stage, tokens in enumerate(content):
        where = f"content of stage {content_stage}"
        if len(tokens) != 2**content_stage:
            raise RequestError(400, f"{where} has {len(tokens)} tokens, it needs {2**content_stage}", param="content")
        if max(tokens) >= size:
            raise RequestError(400, f"{where} holds {max(tokens)}: the codebook has {size} entries", param="content")
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
    """The stages that an edit keeps: the drawn structure of a mask (1, H, W), or stages of a reference and its content.

    Raises RequestError naming the field.
    """
    tokenizer = model.sampler.tokenizer.config
    last, stage = tokenizer.last_stage, request.keep_stages
    if stage is not None and stage > last:
        raise RequestError(400, f"keep_stages={stage}: this model's last stage is {last}", param="keep_stages")
    if mask is not None and stage not in (None, 1):
        message = "a mask is the structure of stage 1: leave keep_stages out, or leave the mask out"
        raise RequestError(400, message, param="keep_stages")
    if stage is None:
        stage = 1 if mask is not None else last
    if reference is None:
        most = 0
    elif mask is not None:  # with a mask, an image gives the content of stage 0 alone, which belongs to no structure
        most = 1
    else:
        most = stage + 1
    if request.keep_content > most:
        message = f"keep_content={request.keep_content}: with what is given here at most {most}"
        raise RequestError(400, message, param="keep_content")
    content = list(reference.content[: request.keep_content]) if reference is not None else []
    if mask is not None:
        try:
            return dataclasses.replace(given_from_drawing(mask, tokenizer.grid), content=content)
        except ValueError as error:
            raise RequestError(400, f"mask: {error}", param="mask") from None
    if reference is None:
        raise RequestError(400, "give image (a reference), mask (a drawn structure) or both", param="image")
    return given_from_sequence(reference, structure_stages=stage, content_stages=request.keep_content)
