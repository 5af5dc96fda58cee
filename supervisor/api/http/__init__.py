"""The HTTP server below the routes: sockets, connections, limits."""
