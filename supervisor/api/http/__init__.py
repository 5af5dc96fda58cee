"""What speaks HTTP below the routes: sockets, connections, limits."""
