"""The HTTP edge: from a path to a typed request, from a result to bytes on a socket."""
