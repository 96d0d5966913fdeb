"""Durability and retries: files, locks, parts and workspaces, local or in object stores."""
