"""RunPod serverless handlers on your own GPUs.

Every process of the program imports this file, so it imports nothing itself: ``Supervisor`` is looked up when asked for.
"""

__version__ = "0.1.0"
