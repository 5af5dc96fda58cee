"""The live screen: what a running supervisor does, at a glance. It runs in a process of its own, `supervise top`.

``view`` draws one picture of a snapshot and is pure; ``live`` keeps it on a terminal. ``machine`` and ``work`` are its upper
and lower half, made of ``section``, ``table``, ``progress`` and ``text``. ``feed`` fetches snapshots beside the screen,
``terminal`` owns the terminal.
"""
