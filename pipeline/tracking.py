"""Weights & Biases, on rank 0 only. Whatever goes wrong there never touches the run."""

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROJECT = "rayssl"


class Tracker:
    """Sends rows to wandb; after its first failure it says so once and stays silent."""

    def __init__(self, run: Any, warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn

    def log(self, rows: list[dict[str, Any]]) -> None:
        """One wandb step for each row."""
        if self._run is None:
            return
        try:
            for row in rows:
                stage = row["stage"]
                values = {f"{stage}/{key}": value for key, value in row.items() if key not in ("stage", "step")}
                self._run.log({**values, f"{stage}/step": row["step"]})
        except Exception as error:
            self._fail(error)

    def finish(self, summary: dict[str, Any]) -> None:
        """Upload the summary and close."""
        if self._run is None:
            return
        try:
            self._run.summary.update(summary)
            self._run.finish()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._warn(f"wandb stopped working and is left out from here on: {type(error).__name__}: {_first_line(error)}")
        self._run = None


def start_tracker(
    mode: str, *, folder: Path, name: str, run_id: str, config: dict[str, Any], warn: Callable[[str], None]
) -> Tracker:
    """A tracker for mode auto | online | offline | disabled; `auto` is online with a key, else off."""
    if mode == "auto":
        mode = "online" if has_key() else "disabled"
    if mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return Tracker(None, warn)
    try:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            resume="allow",
            mode="online" if mode == "online" else "offline",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True, init_timeout=30, console="off", x_disable_stats=True),
        )
        return Tracker(run, warn)
    except Exception as error:
        warn(f"wandb could not start, the run goes on without it: {type(error).__name__}: {_first_line(error)}")
        return Tracker(None, warn)


def has_key() -> bool:
    """Whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).hosts
        return bool(hosts) and not hosts.keys().isdisjoint({"api.wandb.ai", _server()})
    except Exception:  # no such file, one that is no netrc, an address that is none: nothing to log in with
        return False


def _server() -> str | None:
    """The host that wandb talks to: one's own, or its makers', which has had several names."""
    import wandb

    return urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
