"""`python pipelines/serve.py` as a user starts it, with a Ray of its own."""

import glob
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.serve_job import ServeJob

KINDS = {  # of lines that serving shows
    "the model": r"model fashion-mnist: 32x32 images of 10 classes, /.*",
    "where it runs": r"Ray on this machine: 2 CPUs, dashboard at http://[\d.]+:\d+",
    "what is started": r"starting the model: 1 replica with 1 CPU each",
    "what it waits for": r"waiting for \d+ (s|min): [01] of 1 replicas answer\..*",
    "that it serves": r"serving fashion-mnist: press Ctrl\+C to stop",
    "the studio": r"  studio    http://127.0.0.1:\d+/",
    "the documentation": r"  API docs  http://127.0.0.1:\d+/docs",
    "the models": r"  models    http://127.0.0.1:\d+/v1/models",
    "the requests": r"  requests  /.*/logs/serve/requests_\*\.log",
    "that it stops": r"stopping: requests in hand are answered first",
    "that it has stopped": r"stopped",
}


def kinds_of(lines):
    """The kinds of a server's lines, in order; a line of no kind as itself."""
    found = [[kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, line)] or [line] for line in lines]
    return [kind for (kind,) in found]


def request_lines(pattern):
    """The lines of all files of a pattern."""
    return [line for path in sorted(glob.glob(pattern)) for line in Path(path).read_text().splitlines()]


def test_the_job_serves_until_it_is_stopped_and_answers_what_it_has_in_hand():
    with ServeJob(NVG_API_KEYS="one, two", RAY_worker_niceness="0") as job:
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
        shown = "".join(job.lines)
        kinds = [kind for kind in kinds_of(shown.splitlines()) if kind != "what it waits for"]  # on a slow machine
        assert kinds == [kind for kind in KINDS if kind != "what it waits for"], shown
        requests = [json.loads(line) for line in request_lines(re.search(r"^  requests  (.*)$", shown, re.M)[1])]
        asked = [(one["route"], one["status"]) for one in requests if one["method"] == "POST"]
        assert asked == [("other", 401), ("/v1/images/generations", 200)]  # a refused request reaches no route
        assert not any("Bag" in str(one) for one in requests)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{job.address}/healthz")
