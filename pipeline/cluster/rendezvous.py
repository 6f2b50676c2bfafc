"""How the workers of one machine find each other: by a file.

Over the network torch would open a store on every interface, and whoever reaches that can redirect the workers.
"""

import tempfile
from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig

from rayssl.pipeline.cluster.ray_private import join_workers, session_folder


class FileBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's process group of torch, with a file that only this user can read in the place of a server."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Join the workers."""
        join_workers(worker_group, meeting_place(meeting_folder()), backend_config.timeout_s)


def meeting_folder() -> Path:
    """A new folder that is this user's alone; every group has its own, as an old file would confuse a new group.

    It is below Ray's of this session, where Ray leaves its own too; torch reads the file as long as there is a worker.
    """
    return Path(tempfile.mkdtemp(prefix="rayssl-workers-", dir=session_folder()))


def meeting_place(folder: Path) -> str:
    """Where torch's workers meet, as `init_process_group` wants it."""
    return f"file://{folder / 'store'}"


class FileRendezvous(TorchConfig):
    """What a trainer of Ray's is given so that its workers use the above."""

    @property
    def backend_cls(self) -> type[FileBackend]:
        """The backend."""
        return FileBackend
