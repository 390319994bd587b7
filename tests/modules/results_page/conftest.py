"""One browser for all tests of the results page."""

import pytest

from benchmarks.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
