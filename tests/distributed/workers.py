"""A pool of processes in one gloo group, started once for the test session: starting one costs seconds of imports."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT = 120  # seconds for one call, starting included


class Workers:
    """`run(function, *args)` calls an importable function in every process and returns the results by rank."""

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=serve, args=(rank, size, f"file://{folder / 'rendezvous'}", theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes):
            process.start()
            theirs.close()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Results, one a rank; an exception in a process becomes an AssertionError with its traceback."""
        for connection in self.connections:
            connection.send((function, args))
        answers = [self._answer(connection) for connection in self.connections]
        failures = [str(answer) for done, answer in answers if not done]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def _answer(self, connection: Connection) -> tuple[bool, Any]:
        if not connection.poll(TIMEOUT):
            self.stop()
            raise AssertionError(f"a worker gave no answer in {TIMEOUT} s: the group hangs")
        answer: tuple[bool, Any] = connection.recv()
        return answer

    def stop(self) -> None:
        """End the processes at once: they hold nothing, and leaving a group in good order takes seconds."""
        for process in self.processes:
            process.kill()
            process.join()


def serve(rank: int, size: int, rendezvous: str, connection: Connection) -> None:
    """What a process of the pool does: join the group, then call what it is sent."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    while True:
        function, args = connection.recv()
        try:
            connection.send((True, function(*args)))
        except Exception:
            connection.send((False, traceback.format_exc()))
