"""The live dashboard of a running supervisor; runs in a process of its own, `supervise top`.

``view`` renders a snapshot and is pure; ``live`` keeps it on a terminal. ``machine`` and ``work`` are its upper and lower half,
made of ``section``, ``table``, ``progress`` and ``text``. ``feed`` fetches snapshots on a thread, ``terminal`` owns the terminal.
"""
