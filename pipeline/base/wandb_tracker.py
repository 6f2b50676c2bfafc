"""Weights & Biases, on rank 0 only. Whatever goes wrong there never touches the run."""

import configparser
import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROJECT = "rayssl"
# wandb's names of modes. What is shared is sent, too.
KNOWN_MODES = {
    "online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline",
    "disabled": "disabled",
}  # fmt: skip


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


@dataclass(frozen=True)
class Mode:
    """What is sent where: online, offline (kept in the run folder) or disabled, and a line that says why."""

    name: str
    told: str | None = None


def start_tracker(
    mode: str, *, folder: Path, name: str, run_id: str, config: dict[str, Any], warn: Callable[[str], None]
) -> Tracker:
    """A tracker for mode auto | online | offline | disabled; see `choose_mode`."""
    chosen = choose_mode(mode)
    if chosen.told:
        warn(chosen.told)
    if chosen.name == "disabled":
        return Tracker(None, warn)
    try:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            resume="allow",
            mode="online" if chosen.name == "online" else "offline",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True, init_timeout=30, console="off", x_disable_stats=True),
        )
        return Tracker(run, warn)
    except Exception as error:
        warn(f"wandb could not start, the run goes on without it: {type(error).__name__}: {_first_line(error)}")
        return Tracker(None, warn)


def choose_mode(asked: str) -> Mode:
    """What --wandb says, else what the user has told wandb itself, else online with a key; disabled without one."""
    told = told_to_wandb()
    if asked != "auto":
        overruled = f"wandb: {asked}, as --wandb says, not {told.name} as {told.told}" if told else None
        return Mode(asked, overruled if told and told.name != asked else None)
    if told is not None:
        return Mode(told.name, f"wandb: {told.name}, as {told.told} says; --wandb MODE overrules it")
    if not has_key():
        return Mode("disabled")
    return Mode("online", "wandb: online, as there is a key; --wandb offline or disabled, or WANDB_MODE, changes it")


def told_to_wandb() -> Mode | None:
    """The mode by wandb's own variables, else by its settings files (`wandb offline` writes one); None: it is open.

    What is no mode that wandb knows is taken as disabled: nothing is sent by mistake.
    """
    if (value := os.environ.get("WANDB_MODE", "").strip()) != "":
        return Mode(KNOWN_MODES.get(value.lower(), "disabled"), f"WANDB_MODE={value}")
    if (value := os.environ.get("WANDB_DISABLED", "").strip()).lower() not in ("", "0", "false", "no", "off"):
        return Mode("disabled", f"WANDB_DISABLED={value}")
    for path in _settings_files():
        if (mode := _mode_in(path)) is not None:
            return Mode(KNOWN_MODES.get(mode.lower(), "disabled"), str(path))
    return None


def variables() -> dict[str, str]:
    """What workers elsewhere must know of the user's own settings: they have another environment."""
    told = told_to_wandb()
    return {} if told is None else {"WANDB_MODE": told.name}


def obey(given: Mapping[str, str]) -> None:
    """Take over `variables` of the process that started this one."""
    os.environ.update(given)


def _settings_files() -> list[Path]:
    """Of this folder, then of this user: the nearer one counts."""
    try:
        user = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
        return [Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings", user.expanduser() / "settings"]
    except RuntimeError:  # no home
        return []


def _mode_in(path: Path) -> str | None:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
        if parser.getboolean("default", "disabled", fallback=False):
            return "disabled"
        return parser.get("default", "mode", fallback=None)
    except (configparser.Error, OSError, ValueError):
        return None


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
