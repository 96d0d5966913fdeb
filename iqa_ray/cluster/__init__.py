"""Ray: connecting, room on nodes, and actors that may die."""
