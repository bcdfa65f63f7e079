"""Tending the store: what it keeps, what leaves it, and what is looked after while pulls go on."""
