"""The shipped model behind the routes, without Ray: the application in this process."""

import asyncio

import httpx
import pytest

from nvg.config import ServeConfig
from nvg.serving.api import Service, create_app
from nvg.serving.deployment import load_model
from nvg.serving.engine import Engine
from tests.support.recorders import Recorded


@pytest.fixture(scope="session")
def model():
    return load_model(ServeConfig(), "fashion-mnist")


class Server:
    """An application in this process and an HTTP client of it."""

    def __init__(self, model, keys=(), **changes):
        self.config = ServeConfig(**changes)
        self.model, self.keys, self.figures = model, frozenset(keys), Recorded()

    async def __aenter__(self):
        config = self.config
        self.engine = Engine(
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            batch_wait_ms=config.batch_wait_ms,
            observer=self.figures,
        )
        self.service = Service(self.engine, config, self.model)
        app = create_app(self.service, key_hashes=self.keys, observer=self.figures)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        return self

    async def __aexit__(self, *error):
        await self.client.aclose()
        await self.engine.close()


@pytest.fixture
def serve(model):
    """serve(test, **settings): run `await test(server)` against a server with these settings."""

    def run(test, keys=(), **changes):
        async def inside():
            async with Server(model, keys, **changes) as server:
                return await test(server)

        return asyncio.run(inside())

    return run
