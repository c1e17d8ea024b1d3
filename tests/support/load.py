"""Clients that ask a served model without end, as docs/guides/serve.md says, and what became of their requests."""

import base64
import io
import random
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import openai
from PIL import Image

SEEDS = range(60)  # few, so that many clients draw the same request from different replicas
RETRIES = 10
TIMEOUT = 60  # seconds of one try


def classes(seed: int) -> list[int]:
    """The classes of the request with a seed: one to three images of one class."""
    return [seed % 10] * (1 + seed % 3)


def picture(b64: str) -> np.ndarray:
    """The pixels of a picture of an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


@dataclass(frozen=True)
class Answer:
    """The answer to a request, and what it took."""

    seed: int
    fingerprint: str
    pictures: tuple[str, ...]  # in base64
    seconds: float  # with its retries
    retries: int


class _Tries(openai.DefaultHttpxClient):
    """Notes how every try ended, those that the client above repeats too: a status, or an error's name."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int | str] = []

    def send(self, request, **options):
        try:
            response = super().send(request, **options)
        except Exception as error:
            self.ends.append(type(error).__name__)
            raise
        self.ends.append(response.status_code)
        return response


class Load:
    """Threads that send requests one after another until the block ends.

    `answers` has what came back, `errors` the requests that were lost, `tries` how each try ended.
    """

    def __init__(self, address: str, threads: int = 4, seed: int = 0) -> None:
        http = _Tries()
        self.client = openai.OpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=RETRIES, timeout=TIMEOUT, http_client=http
        )
        self.tries = http.ends
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(random.Random(f"{seed}/{number}"),)) for number in range(threads)
        ]

    def _send(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            seed = rng.choice(SEEDS)
            start = time.monotonic()
            try:
                raw = self.client.images.with_raw_response.generate(
                    prompt=str(seed % 10), n=len(classes(seed)), extra_body={"seed": seed}
                )
                answer = raw.parse()
                pictures = tuple(sys.intern(item.b64_json) for item in answer.data)
                seconds = time.monotonic() - start
                self.answers.append(Answer(seed, answer.nvg["fingerprint"], pictures, seconds, raw.retries_taken))
            except Exception as error:
                self.errors.append(f"seed {seed}, after {time.monotonic() - start:.1f} s: {error!r}")

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, condition, seconds=90):
        """Wait until a condition holds; AssertionError when it does not in time."""
        until = time.time() + seconds
        while time.time() < until and not condition():
            time.sleep(0.1)
        assert condition(), (len(self.answers), self.errors[:3])


def wrong_pictures(answers: list[Answer], sampler) -> list[str]:
    """Seeds that were answered by other bytes, or by other pixels than a sampler of this process draws for them."""
    by_seed: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for answer in answers:
        by_seed[answer.seed].add(answer.pictures)
    faults = [f"seed {seed}: {len(seen)} different answers" for seed, seen in sorted(by_seed.items()) if len(seen) > 1]
    for seed, (pictures, *_) in sorted((seed, list(seen)) for seed, seen in by_seed.items()):
        expected = sampler.generate(classes(seed), seed=seed).squeeze(-1)
        if not np.array_equal(np.stack([picture(b64) for b64 in pictures]), expected):
            faults.append(f"seed {seed}: other pixels than the sampler alone draws")
    return faults
