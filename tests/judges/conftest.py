"""Failures in the shared parts of comparisons show their values, like those in tests."""

import pytest

pytest.register_assert_rewrite("judges.judging", "judges.lerobot_comparisons")
