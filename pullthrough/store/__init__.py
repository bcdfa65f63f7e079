"""Content on local disk in registry:2's layout, and its index. Knows no upstream."""
