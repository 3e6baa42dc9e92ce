"""The world that the tests of one folder share."""

import pytest
from harness import end_spawned, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    end_spawned()
