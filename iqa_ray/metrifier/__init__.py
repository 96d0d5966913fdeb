"""A metric learnt from a classifier's own errors: `metrify build`, `train` and `evaluate`."""
