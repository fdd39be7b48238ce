"""What all tests share."""

import pytest

LAB_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real firmware under emulation takes its time, more so on a busy machine: the usual limit is for unit tests."""
    for item in items:
        if item.get_closest_marker("lab") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LAB_SECONDS))
