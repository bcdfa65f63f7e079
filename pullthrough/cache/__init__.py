"""Pull-through policy: freshness, fills and what the server asks for. No HTTP types."""
