"""Requests and answers, after the OpenAI Images API. Fields that this project adds are marked "extension".

Docstrings and descriptions here are the text of the OpenAPI document.

Sizes that depend on the model (stages, positions, classes) are checked in nvg/serving/requests.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationInfo, field_validator, model_validator

from nvg.config import SEEDS, SamplerConfig, range_of

MAX_PROMPTS = 64
MAX_PROMPT = 200  # characters
MAX_SIDE = 1024  # of a drawn structure, and of an image sent back

# Other models' settings, which clients send.
UNUSED = ("quality", "style", "moderation", "user", "safety_identifier", "input_fidelity")

Format = Literal["png", "jpeg", "webp"]
Seed = Annotated[int, Field(ge=SEEDS.least, le=SEEDS.most)]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]


def _setting(name: str, description: str) -> Any:
    """A field of SamplerConfig that a request may leave out, in the setting's own range."""
    allowed = range_of(SamplerConfig, name)
    return Field(None, ge=allowed.least, gt=allowed.above, le=allowed.most, lt=allowed.below, description=description)


class Settings(BaseModel):
    """Sampling settings (extension): fields of SamplerConfig; what is left out is the model's own setting."""

    @field_validator("*", mode="before")
    @classmethod
    def no_truth_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """JSON's true would be read as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is no value of it")
        return value

    flow_steps: int | None = _setting("flow_steps", "Euler steps of the structure flow per stage.")
    flow_shift: float | None = _setting("flow_shift", "Shorter flow steps at the noise; 0 = equal ones.")
    structure_guidance: float | None = _setting("structure_guidance", "Guidance of the structure, last stage.")
    content_guidance: float | None = _setting("content_guidance", "Guidance of the content, last stage.")
    top_p: float | None = _setting("top_p", "Nucleus of the last stage; falls from 1.")
    structure_temperature: float | None = _setting("structure_temperature", "Gumbel noise of the halving.")
    content_temperature: float | None = _setting("content_temperature", "Temperature of the content tokens.")


def _unused() -> Any:
    return Field(None, description="Accepted, not used, and listed in the answer's `nvg.not_used`.")


class Common(Settings):
    """Fields of generations and edits alike."""

    model_config = ConfigDict(extra="forbid")

    model: Prompt | None = Field(None, description="The served model's id, as GET /v1/models has it; may be left out.")
    n: int = Field(1, ge=1, le=64, description="Images of each prompt.")
    seed: Seed | None = Field(
        None, description="Extension. Image j of the answer has seed + j; drawn at random when left out."
    )
    size: str = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$",
        description="auto = the model's own; or a whole multiple of it, every pixel repeated, to 1024x1024.",
    )
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="url gives a data: URL.")
    stream: bool = Field(False, description="Server-sent events: partial images stage by stage, then the images.")
    partial_images: int | None = Field(
        None,
        ge=0,
        le=16,
        description="With stream: the number of previews per image, spread over the stages; left out: one per stage.",
    )
    output_format: Format = Field("png", description="png alone holds the request that makes the same bytes again.")
    output_compression: int = Field(100, ge=0, le=100, description="Quality of jpeg and webp, in percent.")
    background: Literal["auto", "opaque"] = Field("auto", description="Pictures are opaque.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = _unused()
    style: Literal["vivid", "natural"] | None = _unused()
    moderation: Literal["auto", "low"] | None = _unused()
    user: Annotated[str, Field(max_length=200)] | None = _unused()
    safety_identifier: Annotated[str, Field(max_length=200)] | None = _unused()

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, values: Any) -> Any:
        """Clients send null for what they leave out."""
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @property
    def not_used(self) -> list[str]:
        """The fields that were sent and change nothing here."""
        unused = {name for name in self.model_fields_set if name in UNUSED and getattr(self, name) != "auto"}
        if self.output_format == "png":
            unused |= {"output_compression"} & self.model_fields_set
        if not self.stream:
            unused |= {"partial_images"} & self.model_fields_set
        return sorted(unused)


class GenerationRequest(Common):
    """POST /v1/images/generations."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "Bag", "n": 4, "seed": 0},
                {"prompt": ["Bag", 3], "seed": 7, "stream": True},
                {"prompt": "Coat", "seed": 0, "structure": [[0, 0, 1, 1]] * 4, "keep_stages": 1},
            ]
        },
    )

    prompt: Prompt | StrictInt | Annotated[list[Prompt | StrictInt], Field(min_length=1, max_length=MAX_PROMPTS)] = (
        Field(description="A class name or index; a list (extension) makes n images of each.")
    )
    structure: (
        Annotated[
            list[Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1, max_length=MAX_SIDE)]],
            Field(min_length=1, max_length=MAX_SIDE),
        ]
        | None
    ) = Field(
        None,
        description="Extension. A structure map, rows of numbers. With keep_stages = 1 a drawing of 0 and 1, any size; "
        "else the map of stage keep_stages on the model's grid, every number below 2^keep_stages equally often.",
    )
    keep_stages: int | None = Field(
        None, ge=1, le=10, description="Extension. The stage of the given structure; 1 when left out."
    )
    content: (
        Annotated[
            list[Annotated[list[Annotated[int, Field(ge=0, le=65535)]], Field(min_length=1, max_length=1024)]],
            Field(max_length=11),
        ]
        | None
    ) = Field(
        None,
        description="Extension. Content tokens to keep, of stages 0, 1, ...: 2^i of stage i, at most keep_stages + 1.",
    )


class EditRequest(Common):
    """POST /v1/images/edits, the fields beside the files `image` and `mask`."""

    prompt: Prompt = Field(description="A class name or index.")
    keep_stages: int | None = Field(
        None,
        ge=0,
        le=10,
        description="Extension. Structure maps of stages 1 ... keep_stages of the image are kept; all when left out.",
    )
    keep_content: int = Field(
        0,
        ge=0,
        le=11,
        description="Extension. The number of first stages whose content is kept, at most keep_stages + 1.",
    )
    input_fidelity: Literal["low", "high"] | None = _unused()


class ImageExtension(BaseModel):
    """What an image is made of (extension): send structure (with keep_stages = the last stage) and content back to
    have it, or a part of it, again."""

    class_index: int
    class_name: str
    seed: int
    structure: list[list[int]] = Field(description="The last stage's structure map: h rows of w codes.")
    content: list[list[int]] = Field(description="Content tokens of stages 0 ... K: 2^i of stage i.")


class Image(BaseModel):
    """One image of an answer."""

    b64_json: str | None = Field(None, description="The picture in base64, with response_format b64_json.")
    url: str | None = Field(None, description="The picture as a data: URL, with response_format url.")
    nvg: ImageExtension


class Timings(BaseModel):
    """Milliseconds of a request (extension)."""

    queued_ms: float = Field(description="Until the first image's batch began.")
    sampling_ms: float = Field(description="From there until the last image was drawn.")
    total_ms: float = Field(description="From the request's arrival until the answer was ready.")
    batches: list[int] = Field(description="The sizes of the batches that the images were drawn in.")


class AnswerExtension(BaseModel):
    """What made the images (extension)."""

    model: str
    fingerprint: str = Field(description="Hash of the weights.")
    seed: int = Field(description="The first image's seed; image j has seed + j.")
    settings: dict[str, int | float] = Field(description="Sampling settings in full.")
    moved: int | None = Field(None, description="Positions that rebalancing a drawn structure moved to the other half.")
    not_used: list[str] = Field(description="Fields of the request that change nothing here.")
    timings: Timings


class TokenDetails(BaseModel):
    """Parts of input_tokens."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens, as the API's clients expect them: one text token a prompt, the content tokens of the images."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class Pictures(BaseModel):
    """What the API tells of its pictures, in answers and events alike."""

    background: Literal["opaque"] = "opaque"
    output_format: Format
    quality: Literal["standard"] = "standard"
    size: str


class ImagesAnswer(Pictures):
    """The answer to generations and edits."""

    created: int
    data: list[Image]
    usage: Usage
    nvg: AnswerExtension


class StageExtension(BaseModel):
    """A stage (extension)."""

    image_index: int = Field(description="Which of the answer's images.")
    stage: int = Field(description="0 ... K.")
    structure: list[list[int]] = Field(description="This stage's structure map: h rows of w numbers below 2^stage.")


class PartialImageEvent(Pictures):
    """A server-sent event: the image decoded after a stage."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    partial_image_index: int
    created_at: int
    nvg: StageExtension


class CompletedExtension(ImageExtension, AnswerExtension):
    """What made an image (extension), in a stream. `seed` is the image's own."""

    image_index: int


class CompletedEvent(Pictures):
    """A server-sent event: an image is finished. One for each image of the request."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    created_at: int
    usage: Usage
    nvg: CompletedExtension


class ModelExtension(BaseModel):
    """What a client must know of the model (extension)."""

    fingerprint: str
    licence: str | None = Field(default=None, description="Of the weights, where their folder names one.")
    classes: list[str]
    image_size: int
    channels: int
    grid: int = Field(description="Structure maps are grid x grid.")
    last_stage: int = Field(description="K; the stages are 0 ... K.")
    codebook_size: int
    settings: dict[str, int | float]
    max_images: int = Field(description="Images of one request, at most.")


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nvg"
    nvg: ModelExtension


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """GET /healthz and /readyz."""

    status: Literal["ok", "not ready"]
    reason: str | None = None


class ErrorDetail(BaseModel):
    """What is wrong, in words, and with which field."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """The answer to a request that cannot be served."""

    error: ErrorDetail
