"""What the stand-in and the routed real package share; in the worker, and in any Python that a handler starts.

Routing imports it by its full name, the stand-in by this short one: an interpreter of the handler's own has no ``supervisor``.
Nothing here needs more than Python 3.8.
"""
