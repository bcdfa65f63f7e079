"""The registry protocol's own values: pure, with no event loop, no HTTP library and no file system."""
