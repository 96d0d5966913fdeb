"""Measurements of iqa_ray; each module prints JSON. `python -m benchmarks` runs the short ones."""
