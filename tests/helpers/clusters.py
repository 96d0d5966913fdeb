"""What tests of clusters share."""

from __future__ import annotations

import socket
import urllib.request
from collections import Counter

# of a head: lost nodes are noticed after five seconds, not after half a minute; and not after two,
# for which a node that is there may be silent where tests keep every core busy
QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 10,
}


PREFIX = "ray_iqa_ray_"


def find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def read_samples(port: int) -> dict[str, float]:
    """The samples of our metrics as `name{tag}{tag}`, summed over actors."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                tags = [sample.labels.get(key) for key in ("metric", "group", "status", "le")]
                name = sample.name.removeprefix(PREFIX)
                samples[name + "".join(f"{{{tag}}}" for tag in tags if tag)] += sample.value
    return dict(samples)
