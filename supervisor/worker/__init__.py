"""The worker process: it is forked from the template, runs the handler, and ends by ``os._exit``.

``main.enter`` is the door. ``load`` turns the handler's name into its config, ``run`` turns jobs into messages, ``channel`` is
the pipe to the supervisor, ``encode`` makes JSON of a handler's values, ``output`` owns descriptors 1 and 2, ``blame`` writes
tracebacks, and ``runpod`` is what ``import runpod`` finds.
"""
