"""Failures in the shared parts of comparisons show their values, like those in tests; and foreign libraries get time to load."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("judges.judging", "judges.lerobot_comparisons")


def pytest_collection_modifyitems(items):
    """A comparison starts up to three processes that each import a machine learning library."""
    for item in items:
        if item.path.parent == Path(__file__).parent:  # the whole suite's tests come along when pytest walks through here
            item.add_marker(pytest.mark.timeout(1800))
