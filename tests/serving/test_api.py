"""The routes: answers, streams, edits, what they refuse, and that a picture tells how to make it again."""

import asyncio
import base64
import dataclasses
import io
import json
import struct
import threading
import zlib
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from nvg.generator.controls import given_from_sequence
from nvg.serving.guard import hash_key
from nvg.serving.images import made_by

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


def pixels(b64):
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))
    return picture[:, :, None] if picture.ndim == 2 else picture


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def events(text):
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n", 1)
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.fixture
def post(serve):
    """post(body) -> the response to a generation; with files or data to an edit."""

    def run(body=None, *, keys=(), headers=None, settings=None, **form):
        async def test(server):
            if body is not None:
                return await server.client.post(GENERATE, json=body, headers=headers)
            return await server.client.post(EDIT, headers=headers, **form)

        return serve(test, keys=keys, **(settings or {}))

    return run


# ---- generations ----


def test_a_class_name_or_index_is_a_prompt_and_a_list_makes_n_of_each(post, model):
    answer = post({"prompt": ["Bag", 3], "n": 2, "seed": 10}).json()
    made = np.stack([pixels(item["b64_json"]) for item in answer["data"]])
    assert np.array_equal(made, model.sampler.generate([8, 8, 3, 3], seed=10))
    assert [item["nvg"]["class_name"] for item in answer["data"]] == ["Bag", "Bag", "Dress", "Dress"]
    assert [item["nvg"]["seed"] for item in answer["data"]] == [10, 11, 12, 13]
    assert answer["nvg"]["fingerprint"] == model.fingerprint and answer["nvg"]["seed"] == 10
    assert answer["size"] == "32x32" and answer["usage"]["output_tokens"] == 4 * 31
    assert answer["nvg"]["timings"]["total_ms"] >= answer["nvg"]["timings"]["sampling_ms"] > 0


def test_a_seed_is_drawn_and_told_when_none_is_given(post):
    first, second = (post({"prompt": "8"}).json() for _ in range(2))
    assert first["nvg"]["seed"] != second["nvg"]["seed"]
    again = post({"prompt": "8", "seed": first["nvg"]["seed"]}).json()
    assert again["data"][0]["b64_json"] == first["data"][0]["b64_json"]
    largest = post({"prompt": "8", "n": 2, "seed": 2**31 - 1}).json()["data"]
    assert [item["nvg"]["seed"] for item in largest] == [2**31 - 1, 0]  # seeds stay such as can be asked for


def test_settings_of_the_request_are_used_and_told(post, model):
    answer = post({"prompt": "Coat", "seed": 1, "content_guidance": 1.5, "flow_steps": 4, "top_p": 0.9}).json()
    made = model.sampler.generate(["Coat"], seed=1, content_guidance=1.5, flow_steps=4, top_p=0.9)
    assert np.array_equal(pixels(answer["data"][0]["b64_json"]), made[0])
    assert answer["nvg"]["settings"]["flow_steps"] == 4 and answer["nvg"]["settings"]["content_guidance"] == 1.5


def test_a_size_is_a_whole_multiple_of_the_models(post, model):
    answer = post({"prompt": "Coat", "seed": 1, "size": "96x96"}).json()
    made = model.sampler.generate(["Coat"], seed=1)[0]
    assert np.array_equal(pixels(answer["data"][0]["b64_json"]), made.repeat(3, axis=0).repeat(3, axis=1))
    for size in ("33x33", "64x96", "2048x2048"):
        refused = post({"prompt": "Coat", "size": size})
        assert refused.status_code == 400 and "whole multiples of it up to 1024x1024" in refused.text


def test_a_url_is_a_data_url(post):
    answer = post({"prompt": "Coat", "seed": 1, "response_format": "url"}).json()["data"][0]
    assert "b64_json" not in answer and answer["url"].startswith("data:image/png;base64,")


def test_a_picture_holds_the_request_that_makes_it_again(post, model):
    drawn = {"prompt": "Shirt", "seed": 2, "structure": [[0, 1]], "content_guidance": 2.0, "size": "64x64"}
    data = post(drawn).json()["data"][0]["b64_json"]
    told = made_by(base64.b64decode(data))
    assert told["fingerprint"] == model.fingerprint and told["model"] == "fashion-mnist"
    assert told["request"]["structure"] == [[0, 0, 1, 1]] * 4
    assert post(told["request"]).json()["data"][0]["b64_json"] == data
    with pytest.raises(ValueError, match="nvg did not make it"):
        made_by(png(np.zeros((8, 8), np.uint8)))


def test_structure_and_content_of_an_answer_can_be_given_back_in_part(post, model):
    whole = post({"prompt": "Bag", "seed": 0}).json()["data"][0]
    codes = np.array(whole["nvg"]["structure"])
    part = {
        "prompt": "Coat",
        "seed": 5,
        "structure": (codes >> 2).tolist(),
        "keep_stages": 2,
        "content": whole["nvg"]["content"][:3],
    }
    made = post(part).json()["data"][0]
    assert (np.array(made["nvg"]["structure"]) >> 2).tolist() == part["structure"]
    assert made["nvg"]["content"][:3] == part["content"]
    everything = {"prompt": "Coat", "structure": codes.tolist(), "keep_stages": 4, "content": whole["nvg"]["content"]}
    again = pixels(post(everything).json()["data"][0]["b64_json"])
    assert np.array_equal(again, pixels(whole["b64_json"]))  # all is given: class and seed decide nothing


def test_a_map_that_somebody_drew_gets_the_names_that_the_model_knows(post):
    columns = [[0, 1, 2, 3]] * 4
    shuffled = [[3, 1, 0, 2]] * 4  # the halves {0, 1} and {2, 3} are the same columns in another order
    same = [[0, 1, 3, 2]] * 4
    answers = [
        post({"prompt": "Bag", "seed": 0, "structure": rows, "keep_stages": 2}).json()["data"][0]
        for rows in (columns, same, shuffled)
    ]
    assert answers[0]["b64_json"] != answers[2]["b64_json"]
    assert np.array_equal(pixels(answers[0]["b64_json"]), pixels(answers[1]["b64_json"]))


@pytest.mark.parametrize(
    "body, param, message",
    [
        ({}, "prompt", "Field required"),
        ({"prompt": "Hat"}, "prompt", "the classes are T-shirt/top"),
        ({"prompt": 10}, "prompt", "none of 0 ... 9"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": "Bag", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": ["Bag"] * 40, "n": 2}, "n", "80 images, this server draws at most 64"),
        ({"prompt": "Bag", "steps": 3}, "steps", "Extra inputs are not permitted"),
        ({"prompt": "Bag", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "Bag", "top_p": 0}, "top_p", "greater than or equal to 0.001"),
        ({"prompt": "Bag", "content_temperature": 5e-324}, "content_temperature", "greater than or equal to 0.01"),
        ({"prompt": "Bag", "output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"prompt": "Bag", "output_compression": 101}, "output_compression", "less than or equal to 100"),
        ({"prompt": "Bag", "background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"prompt": "Bag", "quality": "best"}, "quality", "'hd'"),
        ({"prompt": None}, "prompt", "Field required"),
        ({"prompt": "Bag", "flow_steps": 101}, "flow_steps", "less than or equal to 100"),
        ({"prompt": "²"}, "prompt", "no class '²'"),
        ({"prompt": "Bag", "keep_stages": 2}, "structure", "give structure too"),
        ({"prompt": "Bag", "structure": [[0, 1], [0]]}, "structure", "equally long"),
        ({"prompt": "Bag", "structure": [[0, 2]]}, "structure", "numbers below 2"),
        ({"prompt": "Bag", "structure": [[1, 1]]}, "structure", "drawing 0 is full"),
        ({"prompt": "Bag", "structure": [[0, 1]], "keep_stages": 5}, "keep_stages", "last stage is 4"),
        ({"prompt": "Bag", "structure": [[0, 1, 2, 3]], "keep_stages": 2}, "structure", "1 x 4 numbers"),
        ({"prompt": "Bag", "structure": [[0, 0, 0, 1]] * 4, "keep_stages": 2}, "structure", "stands 4 times, but 0"),
        ({"prompt": "Bag", "content": [[1], [2, 3]]}, "content", "at most 1 stages"),
        ({"prompt": "Bag", "content": [[1, 2]]}, "content", "it needs 1"),
        ({"prompt": "Bag", "content": [[1024]]}, "content", "1024 entries"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(post, body, param, message):
    refused = post(body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param and message in error["message"] and error["type"] == "invalid_request_error"


def test_another_models_name_is_not_found(post):
    refused = post({"prompt": "Bag", "model": "dall-e-3"})
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"


# ---- streams ----


def test_a_stream_sends_a_partial_image_a_stage_and_then_the_image(post, model):
    answer = post({"prompt": "Sandal", "n": 2, "seed": 4, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    sent = list(events(answer.text))
    partial = [event for name, event in sent if name == "image_generation.partial_image"]
    done = [event for name, event in sent if name == "image_generation.completed"]
    assert [event["nvg"]["stage"] for event in partial if event["nvg"]["image_index"] == 1] == [0, 1, 2, 3, 4]
    assert [event["partial_image_index"] for event in partial if event["nvg"]["image_index"] == 0] == [0, 1, 2, 3, 4]
    whole = post({"prompt": "Sandal", "n": 2, "seed": 4}).json()["data"]
    for event in done:
        assert event["b64_json"] == whole[event["nvg"]["image_index"]]["b64_json"]
        assert event["nvg"]["seed"] == 4 + event["nvg"]["image_index"] and event["usage"]["total_tokens"] == 32


@pytest.mark.parametrize(
    "partial_images, stages", [(0, []), (1, [2]), (3, [1, 2, 3]), (4, [1, 2, 2, 3]), (9, [0, 1, 2, 3, 4])]
)
def test_partial_images_are_spread_over_the_stages(post, partial_images, stages):
    sent = events(post({"prompt": "Sandal", "stream": True, "partial_images": partial_images}).text)
    seen = [event["nvg"]["stage"] for name, event in sent if name.endswith("partial_image")]
    assert seen == sorted(set(stages))


# ---- edits ----


@pytest.fixture(scope="session")
def bag(model):
    """A picture of a bag, and its granularity sequence."""
    import torch

    from nvg.data.images import to_float

    picture = model.sampler.generate(["Bag"], seed=1)[0]
    with torch.inference_mode():
        return picture, model.sampler.tokenizer.encode(to_float(picture[None]))


@pytest.mark.parametrize("stages, content", [(None, 0), (2, 0), (2, 3), (4, 5), (0, 1)])
def test_an_edit_keeps_structure_and_content_of_the_reference_up_to_a_stage(post, model, bag, stages, content):
    picture, sequence = bag
    data = {"prompt": "Coat", "seed": 3, "keep_content": content} | ({} if stages is None else {"keep_stages": stages})
    answer = post(data=data, files={"image": ("bag.png", png(picture[:, :, 0]), "image/png")}).json()
    given = given_from_sequence(sequence, structure_stages=4 if stages is None else stages, content_stages=content)
    assert np.array_equal(
        pixels(answer["data"][0]["b64_json"]), model.sampler.generate(["Coat"], seed=3, given=given)[0]
    )
    told = made_by(base64.b64decode(answer["data"][0]["b64_json"]))["request"]
    assert post(told).json()["data"][0]["b64_json"] == answer["data"][0]["b64_json"]


def test_a_mask_is_a_drawn_structure_by_its_alpha_or_its_brightness(post):
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:, :32, 3] = 255
    drawn = post({"prompt": "Bag", "seed": 0, "structure": [[1, 0]]}).json()["data"][0]["b64_json"]
    for mask in (left, alpha):
        answer = post(data={"prompt": "Bag", "seed": "0"}, files={"mask": ("mask.png", png(mask), "image/png")}).json()
        assert answer["data"][0]["b64_json"] == drawn and answer["nvg"]["moved"] == 0
    left[:, :48] = 255  # three quarters: one quarter of 16 positions changes sides
    unbalanced = post(data={"prompt": "Bag"}, files={"mask": ("mask.png", png(left), "image/png")}).json()
    assert unbalanced["nvg"]["moved"] == 4


def test_edits_stream_under_their_own_event_names(post, bag):
    answer = post(
        data={"prompt": "Coat", "stream": "true"}, files={"image[]": ("bag.png", png(bag[0][:, :, 0]), "image/png")}
    )
    assert [name for name, _ in events(answer.text)] == ["image_edit.partial_image"] * 5 + ["image_edit.completed"]


def bomb():
    """A PNG whose header says 60,000 x 60,000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


CUT = png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[:2000]


@pytest.mark.parametrize(
    "data, files, status, param, message",
    [
        ({"prompt": "Bag"}, {}, 400, None, "multipart/form-data"),
        ({"prompt": "Bag"}, {"picture": b"x"}, 400, "picture", "there are image and mask"),
        ({"prompt": "Bag"}, {"image": b"no picture"}, 400, "image", "no picture of a known format"),
        ({"prompt": "Bag"}, {"image": CUT}, 400, "image", "cannot be read"),
        ({"prompt": "Bag"}, {"image": bomb()}, 413, "image", "pixels"),
        ({"prompt": "Bag"}, {"mask": bomb()}, 413, "mask", "pixels"),
        ({"prompt": "Bag"}, {"image": png(np.zeros((5000, 4000), np.uint8))}, 413, "image", "4000 x 5000 pixels"),
        ({"prompt": "Bag"}, {"mask": png(np.zeros((9, 9), np.uint8))}, 400, "mask", "drawing 0 is empty"),
        ({"prompt": "Bag", "keep_stages": 9}, {"image": "bag"}, 400, "keep_stages", "last stage is 4"),
        ({"prompt": "Bag", "keep_stages": 1, "keep_content": 3}, {"image": "bag"}, 400, "keep_content", "at most 2"),
        ({"prompt": "Bag", "keep_stages": 3}, {"mask": "bag"}, 400, "keep_stages", "structure of stage 1"),
        ({"image": "http://a/b.png", "prompt": "Bag"}, {"mask": "bag"}, 400, "image", "no path or URL is read"),
        ({"prompt": "Bag", "n": "many"}, {"image": "bag"}, 400, "n", "valid integer"),
        ({}, {"image": "bag"}, 400, "prompt", "Field required"),
    ],
)
def test_a_bad_edit_is_refused_in_words(post, bag, data, files, status, param, message):
    given = {name: ("a.png", png(bag[0][:, :, 0]) if value == "bag" else value) for name, value in files.items()}
    refused = post(data=data, files=given)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["param"] == param and message in refused.json()["error"]["message"]


# ---- the rest ----


@asynccontextmanager
async def full_queue(server):
    """The sampler is held up, one image is in its hands, and as many wait as may."""
    release = threading.Event()
    held = asyncio.create_task(server.engine.call(release.wait))
    one = asyncio.create_task(server.client.post(GENERATE, json={"prompt": "Bag"}))
    while not server.figures.batches:
        await asyncio.sleep(0.001)
    rest = {"prompt": "Bag", "n": server.config.max_queue}
    waiting = asyncio.create_task(server.client.post(GENERATE, json=rest))
    while server.engine.queued < server.config.max_queue:
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        release.set()
        await asyncio.gather(held, one, waiting)


def test_the_model_is_listed_with_what_a_client_must_know(serve, model):
    async def test(server):
        listed = (await server.client.get("/v1/models")).json()
        one = (await server.client.get("/v1/models/fashion-mnist")).json()
        return listed, one, (await server.client.get("/v1/models/other")).status_code

    listed, one, other = serve(test)
    assert listed["data"] == [one] and other == 404
    assert one["nvg"]["classes"] == model.sampler.class_names and one["nvg"]["last_stage"] == 4


def test_ready_means_the_engine_runs_and_the_queue_has_room(serve):
    async def test(server):
        client = server.client
        ready = await client.get("/readyz")
        async with full_queue(server):
            full = await client.get("/readyz")
        await server.engine.close()
        return ready, full, await client.get("/readyz"), await client.get("/healthz")

    ready, full, stopped, healthy = serve(test, max_queue=8, max_images=8)
    assert (ready.status_code, full.status_code, stopped.status_code, healthy.status_code) == (200, 503, 503, 200)
    assert full.json()["reason"] == "8 images wait" and stopped.json()["reason"] == "the engine has stopped"


def test_keys_close_the_api_and_leave_the_page_open(serve):
    async def test(server):
        client = server.client
        wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic one"}, {"Authorization": "one"}]
        refused = [(await client.get("/v1/models", headers=headers)).status_code for headers in wrong]
        allowed = [
            (await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code
            for key in ("one", "two")
        ]
        page = [(await client.get(path)).status_code for path in ("/", "/healthz", "/docs", "/openapi.json")]
        return refused, allowed, page, (await client.get("/openapi.json")).json()

    refused, allowed, page, document = serve(test, keys=[hash_key("one"), hash_key("two")])
    assert refused == [401] * 4 and allowed == [200] * 2 and page == [200] * 4
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]


def test_a_body_that_is_too_large_is_refused_before_or_while_it_is_read(serve):
    async def test(server):
        async def chunks():
            for _ in range(30):
                yield b"x" * 1000

        known = await server.client.post(GENERATE, content=b"x" * 20001)
        counted = await server.client.post(
            GENERATE, content=chunks(), headers={"content-type": "application/json", "transfer-encoding": "chunked"}
        )
        return known, counted

    for answer in serve(test, max_body_mb=0.02):
        assert answer.status_code == 413 and "20000" in answer.json()["error"]["message"]


def test_a_full_queue_answers_429_with_retry_after(serve):
    async def test(server):
        async with full_queue(server):
            refused = await server.client.post(GENERATE, json={"prompt": "Bag"})
        return refused, await server.client.post(GENERATE, json={"prompt": "Bag"})

    refused, later = serve(test, max_queue=8, max_images=8)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full" and later.status_code == 200


def test_an_edit_meets_a_full_queue_before_its_image_is_read(serve):
    async def test(server):
        async with full_queue(server):
            return await server.client.post(EDIT, data={"prompt": "Bag"}, files={"image": ("a.png", b"no picture")})

    assert serve(test, max_queue=4, max_images=4).status_code == 429


def test_a_fault_of_ours_is_a_500_in_the_answer_and_in_the_figures(serve):
    async def test(server):
        server.service.model = None
        return await server.client.get("/v1/models"), server.figures.requests

    answer, requests = serve(test)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert requests == {("/v1/models", 500): 1}


def test_every_request_is_counted_and_logged_in_one_line_without_its_prompt(serve, caplog):
    import logging

    from nvg.serving import guard

    async def test(server):
        await server.client.post(GENERATE, json={"prompt": "Bag"}, headers={"x-request-id": "mine-1"})
        answer = await server.client.post(GENERATE, json={"prompt": "Nonsense"})
        await server.client.get("/nowhere")
        return server.figures.requests, answer.headers["x-request-id"]

    with caplog.at_level(logging.INFO, guard.logger.name):
        requests, request_id = serve(test)
    assert requests == {(GENERATE, 200): 1, (GENERATE, 400): 1, ("other", 404): 1}
    lines = [json.loads(record.message) for record in caplog.records if record.name == guard.logger.name]
    assert [line["status"] for line in lines] == [200, 400, 404]
    assert lines[0]["request_id"] == "mine-1" and lines[1]["request_id"] == request_id and lines[0]["ms"] > 0
    assert not any("Bag" in record.message or "Nonsense" in record.message for record in caplog.records)


@pytest.mark.parametrize("shown", [False, True])
def test_requests_are_logged_to_a_file_and_to_the_console_where_a_person_asked_for_it(tmp_path, capsys, shown):
    from nvg.serving import guard

    before = guard.logger.handlers
    guard.log_requests(str(tmp_path / "requests_1.log"), on_stderr=shown)
    try:
        guard.logger.info('{"status": 200}')
    finally:
        for handler in guard.logger.handlers:
            handler.close()
        guard.logger.handlers, guard.logger.propagate = before, True
    assert (tmp_path / "requests_1.log").read_text() == '{"status": 200}\n'
    assert capsys.readouterr() == ("", '{"status": 200}\n' if shown else "")


def test_wrong_methods_and_json_are_told_in_the_same_form(serve):
    async def test(server):
        return await server.client.get(GENERATE), await server.client.post(
            GENERATE, content=b"{", headers={"content-type": "application/json"}
        )

    method, syntax = serve(test)
    assert method.status_code == 405 and method.json()["error"]["message"] == "Method Not Allowed"
    assert syntax.status_code == 400 and "JSON" in syntax.json()["error"]["message"]


def test_no_page_loads_anything_from_elsewhere(serve):
    async def test(server):
        pages = {path: await server.client.get(path) for path in ("/", "/docs")}
        return pages, await server.client.get("/docs/files/swagger-ui-bundle.js")

    pages, script = serve(test)
    assert script.status_code == 200
    for path, page in pages.items():
        assert page.status_code == 200 and "http://" not in page.text and "https://" not in page.text, path
    assert "default-src 'self'" in pages["/"].headers["content-security-policy"]


def test_a_guidance_that_a_few_step_model_has_not_learned_is_refused(model, serve):
    from nvg.generator import Sampler
    from nvg.training.distill_task import begin_as

    whole = model.sampler
    few = Sampler(
        whole.tokenizer,
        whole.content,
        begin_as(whole.structure, 3.0),
        dataclasses.replace(whole.settings, flow_steps=1),
        whole.class_names,
    )

    async def test(server):
        server.service.model = dataclasses.replace(model, sampler=few)
        good = await server.client.post(GENERATE, json={"prompt": "Bag", "seed": 1})
        bad = await server.client.post(GENERATE, json={"prompt": "Bag", "structure_guidance": 3.5})
        return good, bad

    good, bad = serve(test)
    assert good.status_code == 200 and good.json()["nvg"]["settings"]["flow_steps"] == 1
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "structure_guidance"
    assert "1 ... 3" in bad.json()["error"]["message"]


@pytest.mark.parametrize("field", ["seed", "n", "flow_steps", "top_p", "content_guidance", "output_compression"])
@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(post, field, value):
    refused = post({"prompt": "8", field: value})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == field
    assert f"{str(value).lower()} is no value of it" in refused.text
