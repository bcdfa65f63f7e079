"""The registry protocol's own values: pure, no event loop, no HTTP library, no file system."""
