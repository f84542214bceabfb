from __future__ import annotations

import pytest

from tasks_catalog.models import Dataset
from tests.evaluations.flores import store


@pytest.fixture
def translations(flores_task) -> Dataset:
    return store(flores_task, "own", "srp", "eng", "hrv")
