"""The Ray Serve deployment: one replica = one sampler, its engine, and the HTTP routes.

Deployed again, with another model or other settings, new replicas start before the old ones stop, which first answer
what they have in hand: no request is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
import sys
import threading
import time
from typing import Any

import torch
from ray import serve
from ray.serve.config import AutoscalingConfig

from nvg import tracking
from nvg.artifacts.models import fingerprint, licence_of, load_sampler, sampler_folder, whole_name
from nvg.cluster import logs_folder
from nvg.config import ServeConfig
from nvg.console import VERBOSE, duration, say, verbose
from nvg.generator import Sampler
from nvg.generator.compiled import cache_folder
from nvg.precision import set_precision
from nvg.serving.api import create_app
from nvg.serving.engine import Engine, Served
from nvg.serving.guard import api_key_hashes, log_requests
from nvg.serving.metrics import Metrics
from nvg.serving.routes import Service

DEPLOYMENT = "sampler"
# glibc's allocator keeps what is freed: a batch asks for the same sizes again, and by default gives 25 MB back to the
# kernel and takes them, page by page, in every batch. Bytes. Other allocators do not read these.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
# The sampler gives the interpreter up in every torch operation, and would wait 5 ms (the default) to have it back
# while HTTP or a PNG is worked on in another thread.
SWITCH_SECONDS = 0.0005


def load_model(config: ServeConfig, model: str) -> Served:
    """Load the model of a deployment onto its device. Raises ValueError as `nvg.load` does."""
    device = torch.device("cuda" if config.gpus_per_replica > 0 else "cpu")
    folder = sampler_folder(model)
    sampler = load_sampler(folder).to(device, dtype=set_precision(config.precision, device))
    if config.compile:
        compile_sampler(sampler, config.max_batch)
    name = config.name or default_name(config.model)
    return Served(name, sampler, weights_fingerprint(sampler), int(time.time()), licence_of(folder))


def compile_sampler(sampler: Sampler, max_batch: int) -> None:
    """Compile a sampler for batches up to max_batch, and say what is waited for, and for how long it was."""
    start, sizes = time.perf_counter(), batch_sizes(max_batch)
    say(
        f"compiling for batches of {', '.join(map(str, sizes))} images: minutes at the first start, seconds where "
        f"{cache_folder()} has the code"
    )
    sampler.compile(sizes)
    say(f"compiled in {duration(time.perf_counter() - start)}")


def request_log(process: str = "*") -> str:
    """The file in which a replica, by its process id, writes its requests on its own node; `*`: the pattern of all."""
    return os.path.join(logs_folder(), "serve", f"requests_{process}.log")


def batch_sizes(most: int) -> list[int]:
    """The batch sizes that are compiled: 1, 2, 4, ... and the largest. A batch is filled up to the next of them."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def default_name(model: str) -> str:
    """The id of a model in the API: a registered one's own name, else the last part of its folder."""
    if model.startswith("models:/"):
        return re.split("[@/]", model.removeprefix("models:/"))[0]
    return model.rstrip("/").rsplit("/", 1)[-1]


def weights_fingerprint(sampler: Sampler) -> str:
    """A hash of all weights of a sampler. With the request it decides what the pictures are."""
    networks = (sampler.tokenizer, sampler.content, sampler.structure)
    return hashlib.sha256("".join(fingerprint(each.state_dict()) for each in networks).encode()).hexdigest()[:16]


@serve.ingress()
class SamplerReplica:
    """One sampler behind HTTP."""

    def __init__(self, config: dict[str, Any], key_hashes: list[str]) -> None:
        self.config = ServeConfig(**config)
        torch.set_num_threads(self.config.threads_per_replica)
        sys.setswitchinterval(SWITCH_SECONDS)
        log_requests(request_log(str(os.getpid())), on_stderr=verbose())
        self.key_hashes, self.metrics = frozenset(key_hashes), Metrics()
        engine = Engine(
            max_batch=self.config.max_batch,
            max_queue=self.config.max_queue,
            batch_wait_ms=self.config.batch_wait_ms,
            observer=self.metrics,
        )
        follows = re.fullmatch(r"models:/[^@/]+@[^@/]+", self.config.model) and self.config.follow_seconds > 0
        self.version = tracking.registered_version(self.config.model) if follows else self.config.model
        self.service = Service(engine, self.config, load_model(self.config, self.version))
        if follows:
            threading.Thread(target=self.follow, daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.service, key_hashes=self.key_hashes, observer=self.metrics)

    def follow(self) -> None:
        """Load the new version when the alias has moved. Requests in hand end with the model that they started with."""
        while True:
            time.sleep(self.config.follow_seconds)
            try:
                version = tracking.registered_version(self.config.model)
                if version != self.version:
                    self.service.model = load_model(self.config, version)
                    say(f"{self.config.model} is {version} now, was {self.version}")
                    self.version = version
            except Exception as error:  # a store that is away, a model that is broken: neither ends what is served
                logging.getLogger("ray.serve").exception(f"{self.config.model} cannot be followed")
                say(f"{self.config.model} cannot be followed, {self.version} stays: {type(error).__name__}: {error}")

    def check_health(self) -> None:
        """Ray Serve replaces a replica that raises here."""
        if not self.service.engine.alive:
            raise RuntimeError("the engine has stopped")


def application(config: ServeConfig) -> serve.Application:
    """The application that `serve.run` deploys. A relative path of a model is this process's."""
    config = dataclasses.replace(config, model=whole_name(config.model))
    variables = ALLOCATOR | {"OMP_NUM_THREADS": str(config.threads_per_replica)}
    if tracking.ENVIRONMENT in os.environ:  # a replica looks models:/ up on its own node
        variables[tracking.ENVIRONMENT] = os.environ[tracking.ENVIRONMENT]
    if verbose():
        variables[VERBOSE] = "1"
    deployment = serve.deployment(
        SamplerReplica,
        name=DEPLOYMENT,
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
        ),
        # The engine's own queue is the bound, and answers 429 with the time to wait: Serve's would answer 503.
        max_ongoing_requests=2 * config.max_queue,
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        health_check_timeout_s=10,
        max_surge_percent=100,
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
            "runtime_env": {"env_vars": variables},
        },
    )
    return deployment.bind(dataclasses.asdict(config), api_key_hashes())
