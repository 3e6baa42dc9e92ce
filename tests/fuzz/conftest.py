"""The world that the tests of one folder share."""

import pytest
from harness import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))
