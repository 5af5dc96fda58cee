"""The worker process: forked from the template, runs the handler, and exits by ``os._exit``.

``main.prepare`` is the entry point. ``load`` turns the handler's name into its config, ``run`` turns jobs into messages,
``channel`` is the pipe to the supervisor, ``encode`` makes JSON of a handler's values, ``output`` owns descriptors 1 and 2,
``blame`` formats tracebacks, and ``runpod`` provides what ``import runpod`` finds.
"""
