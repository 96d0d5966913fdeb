"""Night after night: what changed since the last listing, and whether quality drifts."""
