"""The shipped model behind the routes, without Ray: the application in this process."""

import asyncio

import httpx
import pytest

from nvg.config import ServeConfig
from nvg.serving.deployment import load_model
from tests.support.application import Application


@pytest.fixture(scope="session")
def model():
    return load_model(ServeConfig(), "fashion-mnist")


class Server(Application):
    """An application in this process and an HTTP client of it."""

    async def __aenter__(self):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
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
