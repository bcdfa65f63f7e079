"""Talking to registries: transport, login, retries, the breaker. Knows no store."""
