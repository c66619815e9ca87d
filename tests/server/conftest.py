import tests.server.stub as stub  # noqa
import httpx2, pytest
from likewise.settings import Settings
from likewise.server.app import create_app

@pytest.fixture
def likewise_app():
    return create_app(stub.StubLikewise(), Settings())

@pytest.fixture
async def client(likewise_app):
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(likewise_app), base_url="http://127.0.0.1") as c:
        yield c
