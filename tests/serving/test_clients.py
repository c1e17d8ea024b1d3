"""What clients of the OpenAI Images API and browsers send: nulls, other models' settings, formats, preflights, HEAD."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from nvg.generator import Sampler
from nvg.serving import schemas
from nvg.serving.guard import hash_key
from nvg.serving.images import made_by

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
OPTIONAL = sorted(name for name, field in schemas.GenerationRequest.model_fields.items() if not field.is_required())
OPTIONAL_OF_EDITS = sorted(name for name, field in schemas.EditRequest.model_fields.items() if not field.is_required())


def drawing():
    """A PNG of two halves."""
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 8, axis=0).repeat(4, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ask(serve):
    """ask(body) -> the answer to a generation; with data or files to an edit."""

    def run(body=None, model=None, **form):
        async def test(server):
            if model is not None:
                server.service.model = model
            if body is not None:
                return await server.client.post(GENERATE, json=body)
            return await server.client.post(EDIT, **form)

        return serve(test)

    return run


# ---- what is left out ----


def test_null_is_as_if_left_out_in_every_optional_field(ask):
    plain = ask({"prompt": "Bag", "seed": 1}).json()
    nulls = ask({"prompt": "Bag"} | dict.fromkeys(OPTIONAL) | {"seed": 1})
    assert nulls.status_code == 200, nulls.text
    assert nulls.json()["data"] == plain["data"] and nulls.json()["nvg"]["not_used"] == []


def test_an_empty_text_is_as_if_left_out_in_every_optional_field_of_a_form(ask):
    files = {"mask": ("mask.png", drawing())}
    plain = ask(data={"prompt": "Bag", "seed": "1"}, files=files).json()
    empty = ask(data={"prompt": "Bag"} | dict.fromkeys(OPTIONAL_OF_EDITS, "") | {"seed": "1"}, files=files)
    assert empty.status_code == 200, empty.text
    assert empty.json()["data"] == plain["data"] and empty.json()["nvg"]["not_used"] == []


def test_a_file_that_was_not_chosen_is_as_if_left_out(ask):
    files = [("image", ("", b"", "application/octet-stream")), ("mask", ("mask.png", drawing()))]
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), filename.encode(), data)
        for name, (filename, data, *_) in files
    )
    body += b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nBag\r\n--x--\r\n'
    answer = ask(content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200, answer.text


# ---- settings of other models ----

ELSEWHERE = [
    *[("quality", value) for value in ("standard", "hd", "low", "medium", "high")],
    *[("style", value) for value in ("vivid", "natural")],
    ("moderation", "low"),
    ("output_compression", 100),
    ("partial_images", 2),
    ("user", "someone"),
    ("safety_identifier", "someone"),
]


@pytest.mark.parametrize(("name", "value"), ELSEWHERE)
def test_what_changes_nothing_here_is_taken_and_listed(ask, name, value):
    plain = ask({"prompt": "Bag", "seed": 1}).json()
    answer = ask({"prompt": "Bag", "seed": 1, name: value})
    assert answer.status_code == 200, answer.text
    assert answer.json()["nvg"]["not_used"] == [name] and answer.json()["data"] == plain["data"]


@pytest.mark.parametrize(
    "body",
    [
        {"quality": "auto", "moderation": "auto", "background": "auto", "size": "auto"},
        {"background": "opaque", "output_format": "png", "response_format": "b64_json", "n": 1, "stream": False},
        {"stream": True, "partial_images": 1},
        {"output_format": "jpeg", "output_compression": 90},
    ],
    ids=lambda body: " ".join(body),
)
def test_what_means_what_is_done_here_is_not_listed(ask, body):
    answer = ask({"prompt": "Bag"} | body)
    assert answer.status_code == 200 and '"not_used":[]' in answer.text


def test_edits_and_streams_take_and_list_them_too(ask):
    form = {"prompt": "Bag", "quality": "high", "input_fidelity": "high", "stream": "true"}
    answer = ask(data=form, files={"mask": ("mask.png", drawing())})
    assert answer.status_code == 200 and '"not_used":["input_fidelity","quality"]' in answer.text


NOT_DRAWN = {
    "svg",
    "complexity",
    "frame_count",
    "frame_duration_ms",
    "markup",
}  # of vector pictures and animations: refused


def test_the_openai_client_s_own_arguments_are_all_known():
    """What images.generate and images.edit of the client can send is a field here, a file, or refused."""
    import inspect

    from openai.resources.images import Images

    transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    for method, request in ((Images.generate, schemas.GenerationRequest), (Images.edit, schemas.EditRequest)):
        names = set(inspect.signature(inspect.unwrap(method)).parameters) - transport - {"image", "mask"}
        names -= NOT_DRAWN
        assert names <= set(request.model_fields), method.__name__


# ---- formats ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_come_in_the_format_that_is_asked_for(ask, model, name, kind, stream):
    body = {"prompt": "Bag", "seed": 1, "size": "64x64", "output_format": name, "stream": stream}
    answer = ask(body)
    if stream:
        event = answer.text.strip().split("\n\n")[-1].split("data: ")[1]
        told = schemas.CompletedEvent.model_validate_json(event)
        data = base64.b64decode(told.b64_json)
    else:
        told = schemas.ImagesAnswer.model_validate(answer.json())
        data = base64.b64decode(told.data[0].b64_json)
    picture = Image.open(io.BytesIO(data))
    assert told.output_format == name and picture.format == kind and picture.size == (64, 64)
    near = np.asarray(picture.convert("L"), dtype=int) - model.sampler.generate(["Bag"], seed=1)[0, :, :, 0].repeat(
        2, axis=0
    ).repeat(2, axis=1)
    assert np.abs(near).mean() < 3
    if name != "png":
        with pytest.raises(ValueError, match="no text chunk"):
            made_by(data)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_compression_makes_a_picture_smaller_and_the_same_request_the_same_bytes(ask, name):
    def size(compression):
        body = {"prompt": "Bag", "seed": 1, "size": "256x256", "output_format": name, "output_compression": compression}
        first, second = (ask(body).json()["data"][0]["b64_json"] for _ in range(2))
        assert first == second
        return len(first)

    assert size(0) < size(50) < size(100)


def test_a_url_names_its_format(ask):
    answer = ask({"prompt": "Bag", "output_format": "webp", "response_format": "url"}).json()["data"][0]
    assert answer["url"].startswith("data:image/webp;base64,")


# ---- classes ----


def renamed(model, names):
    """The model with other class names."""
    whole = model.sampler
    sampler = Sampler(whole.tokenizer, whole.content, whole.structure, whole.settings, names)
    return dataclasses.replace(model, sampler=sampler)


TWINS = ["a", "a", "b", "1", "0", "", "x" * 300, "-1", "²", "b"]  # names of others, numbers, no prompts


@pytest.mark.parametrize("index", range(10))
def test_a_picture_s_own_request_draws_the_same_bytes_whatever_the_classes_are_called(ask, model, index):
    twins = renamed(model, TWINS)
    data = ask({"prompt": index, "seed": 3}, twins).json()["data"][0]
    assert data["nvg"]["class_index"] == index
    again = ask(made_by(base64.b64decode(data["b64_json"]))["request"], twins).json()["data"][0]
    assert again["b64_json"] == data["b64_json"] and again["nvg"]["class_index"] == index


@pytest.mark.parametrize(("prompt", "index"), [("1", 3), (1, 1), ("0", 4), (0, 0), ("5", 5), ("-1", 7), ("²", 8)])
def test_a_number_is_an_index_and_a_text_a_name_first(ask, model, prompt, index):
    assert ask({"prompt": prompt}, renamed(model, TWINS)).json()["data"][0]["nvg"]["class_index"] == index


def test_a_name_of_several_classes_is_refused_with_their_indices(ask, model):
    refused = ask({"prompt": "b"}, renamed(model, TWINS))
    assert refused.status_code == 400
    assert "2 classes are called 'b': give an index, 2 or 9" in refused.json()["error"]["message"]


# ---- browsers ----

PREFLIGHT = {
    "Origin": "https://app.example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize("path", [GENERATE, EDIT, "/v1/models"])
def test_a_page_of_an_allowed_origin_may_call_the_api_and_its_preflight_needs_no_key(serve, path):
    async def test(server):
        preflight = await server.client.options(path, headers=PREFLIGHT)
        refused = await server.client.get("/v1/models", headers={"Origin": PREFLIGHT["Origin"]})
        other = await server.client.options(path, headers=PREFLIGHT | {"Origin": "https://example.net"})
        key = {"Origin": PREFLIGHT["Origin"], "Authorization": "Bearer one"}
        return preflight, refused, other, await server.client.get("/v1/models", headers=key)

    origins = [PREFLIGHT["Origin"]]
    preflight, refused, other, allowed = serve(test, keys=[hash_key("one")], allowed_origins=origins)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PREFLIGHT["Origin"]
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    # The page can read why it was refused.
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PREFLIGHT["Origin"]
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    assert allowed.status_code == 200 and "X-Request-Id" in allowed.headers["access-control-expose-headers"]


def test_any_origin_may_be_allowed(serve):
    async def test(server):
        return await server.client.get("/v1/models", headers={"Origin": "http://localhost:3000"})

    assert serve(test, allowed_origins=["*"]).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("keys", [[], [hash_key("one")]], ids=["open", "keys"])
def test_no_origin_is_allowed_by_default(serve, keys):
    async def test(server):
        page = {"Origin": PREFLIGHT["Origin"]}
        return await server.client.options(GENERATE, headers=PREFLIGHT), await server.client.get("/", headers=page)

    for answer in serve(test, keys=keys):
        assert "access-control-allow-origin" not in answer.headers
    assert serve(test, keys=keys)[0].status_code == 405


PAGES = ["/", "/healthz", "/readyz", "/v1/models", "/v1/models/fashion-mnist", "/docs", "/openapi.json"]
FILES = ["/studio/studio.js", "/studio/studio.css", "/docs/files/swagger-ui-bundle.js"]


def test_head_is_get_without_the_body(serve):
    async def test(server):
        for path in (*PAGES, *FILES):
            server.figures.requests.clear()
            get, head = await server.client.get(path), await server.client.head(path)
            assert get.status_code == head.status_code == 200 and head.content == b"", path
            assert head.headers["content-length"] == str(len(get.content)), path
            assert head.headers["content-type"] == get.headers["content-type"], path
            requests = server.figures.requests
            assert sum(requests.values()) == 2 and len(requests) == 1, path  # counted under the same route

    serve(test)


def test_head_asks_for_a_key_and_for_no_picture(serve):
    async def test(server):
        key = {"Authorization": "Bearer one"}
        return [
            (await server.client.head("/v1/models")).status_code,
            (await server.client.head("/v1/models", headers=key)).status_code,
            (await server.client.head(GENERATE, headers=key)).status_code,
        ]

    assert serve(test, keys=[hash_key("one")]) == [401, 200, 405]
