"""Where in a network distortions bite: how far each layer's features move, and what comes of it."""
