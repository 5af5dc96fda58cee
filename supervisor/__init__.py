"""RunPod serverless handlers on your own GPUs.

Every process of the program imports this file, so it imports nothing itself: ``Supervisor`` is looked up when asked for.
"""

TYPE_CHECKING = False  # typing's own costs an import, and type checkers know this one too
if TYPE_CHECKING:
    from supervisor.embed import Supervisor as Supervisor

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "Supervisor":
        from supervisor.embed import Supervisor  # noqa: PLC0415 - not before it is asked for

        return Supervisor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
