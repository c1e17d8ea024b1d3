"""The HTTP application without Ray: in this process, or on a port of this machine for a browser."""

import asyncio
import contextlib
import socket
import threading

import uvicorn

from nvg.config import ServeConfig
from nvg.serving.api import create_app
from nvg.serving.engine import Engine
from nvg.serving.routes import Service
from tests.support.recorders import Recorded


class Application:
    """The routes of a model around an engine of their own. To be made in a running event loop."""

    def __init__(self, model, keys=(), **changes):
        self.config, self.figures = ServeConfig(**changes), Recorded()
        self.engine = Engine(
            max_batch=self.config.max_batch,
            max_queue=self.config.max_queue,
            batch_wait_ms=self.config.batch_wait_ms,
            observer=self.figures,
        )
        self.service = Service(self.engine, self.config, model)
        self.app = create_app(self.service, key_hashes=frozenset(keys), observer=self.figures)


@contextlib.contextmanager
def on_a_port(model, keys=(), **changes):
    """The address of a server of the application, in a thread, until the block ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    started, servers = threading.Event(), []

    async def serve():
        application = Application(model, keys, **changes)
        server = uvicorn.Server(uvicorn.Config(application.app, log_level="warning", timeout_graceful_shutdown=5))
        servers.append(server)
        started.set()  # the socket listens already: who connects now waits
        await server.serve(sockets=[listening])
        await application.engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(60), "the application did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the application did not stop"
