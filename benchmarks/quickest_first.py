"""A plugin of pytest for `make mutants`: the files whose tests take least time come first.

mutmut hands pytest the tests of a mutant in no order, another one each time. Then those of
different files alternate, so that what the tests of a file share, such as a server, is started and
stopped again and again, and a mutant that the quickest test would notice costs the time of the
slowest. Here the tests of each file stay together and in their order.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

STATS = Path("mutmut-stats.json")  # of mutmut, once it has run all tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seconds = json.loads(STATS.read_text())["duration_by_test"] if STATS.exists() else {}
    costs: Counter[str] = Counter()
    for item in items:
        costs[item.location[0]] += seconds.get(item.nodeid, 0)
    items.sort(
        key=lambda item: (costs[item.location[0]], item.location[0], item.location[1], item.name)
    )
