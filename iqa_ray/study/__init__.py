"""Which metrics can be trusted."""
