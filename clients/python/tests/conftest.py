import pytest
from world import Model, Redis, Server


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, default=0, help="how long the connections are cut")


@pytest.fixture(scope="session")
def model():
    with Model() as model:
        yield model


@pytest.fixture(scope="session")
def server(model):
    """One replica that answers from the knowledge base."""
    with Server(*[setting for setting in model.settings if "default" not in setting]) as server:
        yield server


@pytest.fixture(scope="session")
def replicas(model):
    """Two replicas with one log; a model answers."""
    with Redis() as redis:
        url = f"store.url={redis.url}"
        starting = [Server(url, *model.settings) for _ in range(2)]
        with starting[0] as one, starting[1] as other:
            yield one, other
