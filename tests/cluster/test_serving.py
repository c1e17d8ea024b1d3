"""Serving for real: Ray Serve on a free port, the openai client, schemathesis, faults under load."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import schemathesis.specs.openapi.schemas  # here: pytest rewrites it, and ast fails at times beside Ray's threads
from hypothesis import HealthCheck, given, settings
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks

import nvg
from nvg.artifacts.models import fingerprint
from nvg.config import ServeConfig
from pipelines.serve import deploy_until
from tests.support.browser import generate, started_browser, visits
from tests.support.load import Load, picture, wrong_pictures
from tests.support.processes import replicas
from tests.support.smoke import ROOT

ASSET = ROOT / "nvg" / "assets" / "fashion-mnist"


@pytest.fixture
def client(address):
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none")


# ---- the openai client, unchanged ----


def test_the_openai_client_generates(client):
    answer = client.images.generate(prompt="Bag", n=2, size="64x64", response_format="b64_json", model="fashion-mnist")
    assert [picture(item.b64_json).shape for item in answer.data] == [(64, 64)] * 2
    assert answer.usage.output_tokens == 62 and answer.size == "64x64"
    seeded = [client.images.generate(prompt="Bag", extra_body={"seed": 5}) for _ in range(2)]
    assert seeded[0].data[0].b64_json == seeded[1].data[0].b64_json
    assert seeded[0].nvg["seed"] == 5 and len(seeded[0].nvg["fingerprint"]) == 16


def test_the_openai_client_streams(client):
    events = list(client.images.generate(prompt="Coat", stream=True, partial_images=3, extra_body={"seed": 1}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    whole = client.images.generate(prompt="Coat", extra_body={"seed": 1})
    assert events[-1].b64_json == whole.data[0].b64_json


def test_the_openai_client_edits_and_streams_edits(client, tmp_path):
    reference = tmp_path / "bag.png"
    made = client.images.generate(prompt="Bag", extra_body={"seed": 1}).data[0]
    reference.write_bytes(base64.b64decode(made.b64_json))
    same = client.images.edit(image=reference.open("rb"), prompt="Bag", extra_body={"seed": 1, "keep_stages": 4})
    assert same.data[0].nvg["class_name"] == "Bag"
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    drawn = client.images.edit(image=reference.open("rb"), mask=buffer.getvalue(), prompt="Coat", n=2)
    assert len(drawn.data) == 2 and drawn.nvg["moved"] == 0
    half = np.array(drawn.data[0].nvg["structure"]) >> 3
    assert half.tolist() == [[0, 0, 1, 1]] * 4
    events = list(client.images.edit(image=reference.open("rb"), prompt="Coat", stream=True))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 5 + ["image_edit.completed"]


def test_the_openai_client_lists_models_and_understands_refusals(client):
    import openai

    assert [model.id for model in client.models.list()] == ["fashion-mnist"]
    with pytest.raises(openai.BadRequestError, match="the classes are T-shirt/top") as refused:
        client.images.generate(prompt="Hat")
    assert refused.value.param == "prompt" and refused.value.code == "unknown_class"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="Bag", model="dall-e-3")


# ---- the studio page through the proxy; tests/serving/test_studio.py has everything else of it ----


def test_stages_arrive_in_the_studio_page(address):
    with started_browser() as browser, visits(browser, address) as visit:
        page = visit()
        page.get_by_label("Seed", exact=True).fill("3")
        generate(page)
        strip = page.get_by_role("figure").filter(has_text="seed 3")
        for stage in range(5):
            expect(strip.get_by_role("img", name=f"structure map of stage {stage}")).to_be_visible()
        page.get_by_role("button", name="Structure of a picture: Boot").click()
        expect(page.get_by_role("status")).to_have_text("Done: 4 pictures.", timeout=60_000)


# ---- the OpenAPI document ----


def test_the_openapi_document_holds_for_whatever_schemathesis_sends(address):
    load_all_checks()
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    rules = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
    ]
    tried = set()
    for operation in document.get_all_operations():
        operation = operation.ok()

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def each(case):
            case.call_and_validate(checks=rules)
            tried.add(case.operation.label)

        each()
    assert tried == {
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "GET /v1/models",
        "GET /v1/models/{name}",
        "GET /healthz",
        "GET /readyz",
    }


# ---- under load ----


def ask(address, **body):
    return httpx.post(f"{address}/v1/images/generations", json=body, timeout=120)


def test_the_same_seed_gives_the_same_bytes_whatever_the_load(address):
    bodies = [
        {"prompt": [number % 10], "n": 1 + number % 3, "seed": number, "content_guidance": 1.0 + number % 4}
        for number in range(12)
    ]
    alone = [ask(address, **body).json() for body in bodies]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda body: ask(address, **body).json(), bodies))
    for one, other in zip(alone, together, strict=True):
        assert [item["b64_json"] for item in one["data"]] == [item["b64_json"] for item in other["data"]]
    assert max(size for answer in together for size in answer["nvg"]["timings"]["batches"]) > 4


def go_away(address, pause, stream):
    """Ask for 64 images, the body `pause` seconds after the header as clients do, and close the connection."""
    body = json.dumps({"prompt": "Bag", "n": 64, "flow_steps": 100, "stream": stream}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: nvg\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=60) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        time.sleep(pause)
        connection.sendall(body)
        if stream:
            assert connection.recv(16).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def seconds_of_sixteen(address):
    """How long sixteen slow images take."""
    return ask(address, prompt="Bag", n=16, flow_steps=100).json()["nvg"]["timings"]["total_ms"] / 1000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("pause", [0, 0.05], ids=["at_once", "body_later"])
def test_a_client_that_goes_away_frees_the_sampler(address, seconds_of_sixteen, pause, stream):
    start = time.perf_counter()
    go_away(address, pause, stream)
    assert ask(address, prompt="Bag", seed=0).status_code == 200
    assert time.perf_counter() - start < 2.5 * seconds_of_sixteen, "four batches were drawn for nobody"


def test_figures_are_exported_for_prometheus(address):
    import ray

    ask(address, prompt=["Bag"] * 8)
    ask(address, prompt="Hat")
    exports = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    expected = [
        "ray_nvg_requests_total{",
        "ray_nvg_request_seconds_bucket{",
        "ray_nvg_queue_images{",
        "ray_nvg_batch_images_bucket{",
        "ray_nvg_stage_seconds_bucket{",
    ]
    text, until = "", time.time() + 60
    while time.time() < until and not all(name in text for name in expected):
        time.sleep(2)
        text = httpx.get(exports).text
    assert [name for name in expected if name not in text] == []
    lines = [line for line in text.splitlines() if line.startswith("ray_nvg_requests_total{")]
    assert any('status="400"' in line and 'route="/v1/images/generations"' in line for line in lines)
    timed = [line for line in text.splitlines() if line.startswith("ray_nvg_stage_seconds_count{")]
    stages = {line.split('stage="')[1][0] for line in timed}
    assert stages == {"0", "1", "2", "3", "4"}


def test_the_load_test_and_the_benchmark_measure_both_sides(port, address, capsys):
    from benchmarks import load_test, report, serving

    arguments = load_test.parse(["--seconds", "0.5", "--rounds", "1", "--batch", "4", "--port", str(port)])
    measured = load_test.run_rounds(arguments)
    load_test.report(arguments, measured)
    printed = capsys.readouterr().out
    assert printed.count("| in process, ") == 2 and printed.count("| served, ") == 4
    assert re.search(r"added to the median of a single request: -?[\d.]+ ms", printed)
    assert len(re.findall(r"a request: \d+%", printed)) == 2
    rows = serving.rows_of(arguments, measured)
    assert report.table(rows).count("served") == 4 and [row.values["of in-process, %"] for row in rows].count(None) == 3


def test_a_new_model_version_takes_over_without_a_dropped_request(deploy, address, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ASSET, other)
    weights = load_file(other / "content.safetensors")
    weights["to_logits.bias"] = weights["to_logits.bias"] * 0.9
    save_file(weights, other / "content.safetensors")
    metadata = json.loads((other / "metadata.json").read_text())
    metadata["weights"]["content"] = fingerprint(weights)
    (other / "metadata.json").write_text(json.dumps(metadata))
    with Load(address) as load:
        load.wait_for(lambda: len(load.answers) > 10)
        deploy(model=str(other), name="fashion-mnist")
        load.wait_for(lambda: len({answer.fingerprint for answer in load.answers}) == 2)
        seen = len(load.answers)
        load.wait_for(lambda: len(load.answers) > seen + 20)
    assert load.errors == []
    last = {answer.fingerprint for answer in load.answers[-10:]}
    assert last == {load.answers[-1].fingerprint} != {load.answers[0].fingerprint}


def test_a_model_that_no_replica_can_load_is_named_with_its_traceback_and_the_served_one_stays(
    port, address, tmp_path, capfd
):
    broken = tmp_path / "broken"
    shutil.copytree(ASSET, broken)
    shutil.copy(ASSET.parent / "fashion-mnist-fast" / "content.safetensors", broken)
    config = ServeConfig(port=port, cpus_per_replica=0.5, model=str(broken))
    with pytest.raises(RuntimeError, match=r"^no replica could start: .*/broken/content\.safetensors does not fit"):
        deploy_until(threading.Event(), config)
    said = capfd.readouterr()
    assert "starting the model: 1 replica with 0.5 CPU each" in said.out
    assert "Traceback (most recent call last)" in said.err and "in load_model" in said.err
    assert ask(address, prompt="Bag").status_code == 200


def test_replicas_come_with_load_and_a_killed_one_loses_no_request_that_a_retry_does_not_get_back(deploy):
    address = deploy(min_replicas=1, max_replicas=2, target_ongoing_requests=1.0, upscale_delay_s=1.0)
    with Load(address, threads=6) as load:
        load.wait_for(lambda: len(replicas()) == 2, 90)
        seen = len(load.answers)
        load.wait_for(lambda: len(load.answers) > seen + 20)
        victim = replicas()[0]
        os.kill(victim, signal.SIGKILL)
        seen = len(load.answers)
        load.wait_for(lambda: len(load.answers) > seen + 40)
        load.wait_for(lambda: len(replicas()) == 2 and victim not in replicas(), 120)
    assert load.errors == []
    assert len({answer.seed for answer in load.answers}) < len(load.answers)  # some were drawn more than once
    assert wrong_pictures(load.answers, nvg.load("fashion-mnist")) == []
