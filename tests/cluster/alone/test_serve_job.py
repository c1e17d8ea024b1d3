"""`python pipelines/serve.py` as a user starts it, with a Ray of its own."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.serve_job import ServeJob


def test_the_job_serves_until_it_is_stopped_and_answers_what_it_has_in_hand():
    with ServeJob(NVG_API_KEYS="one, two", RAY_worker_niceness="0") as job:  # conftest.py
        assert httpx.post(f"{job.address}/v1/images/generations", json={"prompt": "Bag"}).status_code == 401
        keyed = httpx.Client(headers={"Authorization": "Bearer two"}, timeout=120)
        assert "Next visual granularity" in keyed.get(f"{job.address}/openapi.json").text
        with ThreadPoolExecutor(1) as pool:
            body = {"prompt": "Bag", "n": 32, "flow_steps": 100}
            slow = pool.submit(keyed.post, f"{job.address}/v1/images/generations", json=body)
            time.sleep(1)
            assert not slow.done()
            assert job.stop() == 0
            answer = slow.result()
        assert answer.status_code == 200 and len(answer.json()["data"]) == 32
        assert "stopping: requests in hand" in "".join(job.lines) and job.answered.total() == 1
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{job.address}/healthz")
