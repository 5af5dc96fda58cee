"""Starts the template as often as it takes and keeps what every one is told; in the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from supervisor.errors import WireError
from supervisor.host.orphans import sweep_marked, sweep_orphans
from supervisor.pool.pipes.ends import Pipes, make_pipes
from supervisor.pool.template.process import Gone, Template
from supervisor.wire import messages as wire


class TemplateStarter:
    """The present template; after its death ``start`` makes another with the same setup and locks."""

    def __init__(
        self, setup: wire.Setup, locks: Sequence[int], known: Callable[[], Collection[int]] | None, output: int = 2
    ) -> None:
        """Share ``locks`` (descriptors); ``known`` gives this process's own children, which a sweep must spare.

        Without it this process is a user's program: a sweep spares all but what this run started.
        """
        self._setup = setup
        self._locks = tuple(locks)
        self._known = known
        self._output = output
        self._template: Template | None = None

    def start(self) -> None:
        """Start a template process.

        Raises:
            OSError: the system refuses.
        """
        if self._template is not None:
            self._template.close()
            self._template = None
        template = Template(output=self._output)
        template.start(self._setup, self._locks)
        self._template = template

    def fileno(self) -> int:
        """Readable when ``receive`` has something."""
        return self._present.fileno()

    @property
    def pid(self) -> int | None:
        """The template's process id; ``None`` before the first start."""
        return None if self._template is None else self._template.pid

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` must be called when the descriptor can be written."""
        return self._present.wants_write

    def flush(self) -> None:
        """Send what waits."""
        self._present.flush()

    def receive(self) -> list[wire.FromTemplate | Gone]:
        """What has happened. A template that cannot be understood is as good as dead: it is killed and ``Gone``."""
        try:
            return self._present.receive()
        except WireError:
            self._present.kill()
            return [Gone(self._present.wait(1.0))]

    def pipes(self) -> Pipes:
        """Pipes for one worker generation.

        Raises:
            OSError: no descriptors are left.
        """
        return make_pipes()

    def fork(self, slot: str, generation: int, env: Mapping[str, str | None], pipes: Pipes) -> None:
        """Ask for a worker and hand its ends of ``pipes`` over.

        Raises:
            OSError: no descriptors are left.
        """
        self._present.resume()
        try:
            self._present.fork(slot, generation, env, pipes.worker_connection.fileno(), pipes.worker_log)
        finally:
            pipes.close_workers()

    def signal(self, slot: str, generation: int, signum: int) -> None:
        """Signal a worker."""
        self._present.resume()
        self._present.signal(slot, generation, signum)

    def end_tree(self, slot: str, generation: int) -> None:
        """SIGKILL a worker and all it started."""
        self._present.resume()
        self._present.end_tree(slot, generation)

    def resume(self) -> None:
        """Let a template that somebody has stopped go on."""
        if self._template is not None:
            self._template.resume()

    def sweep(self) -> int:
        """End what a dead template left behind; returns how many processes."""
        return sweep_marked(self._setup.run_id) if self._known is None else sweep_orphans(self._known())

    def stop(self, timeout: float) -> None:
        """End the template and everything below it, waiting up to ``timeout`` seconds; what is left then is swept."""
        if self._template is not None:
            self._template.quit()
            self._template.resume()
            if self._template.wait(timeout) is None:
                self._template.kill()
                self._template.wait(timeout)
            self._template.close()
            self.sweep()

    @property
    def _present(self) -> Template:
        if self._template is None:
            raise RuntimeError("the template was not started")
        return self._template
