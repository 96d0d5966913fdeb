"""Files of networks: fetched, verified, and copied once a node."""
