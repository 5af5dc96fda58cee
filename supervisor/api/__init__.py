"""The HTTP API: the supervisor's door to clients; runs in the supervisor process.

``app`` is a raw ASGI application over the engine's public face, ``server`` runs it on sockets inside the supervisor's loop.
"""
