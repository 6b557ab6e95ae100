"""Files that are either whole or not there: written beside their place, then renamed."""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from routing_marl.errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file, and renames it to ``path``: never a half-written file under that name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        reason += " (is the disk full?)" if isinstance(error, RuntimeError) else ""
        raise UserError(f"{path} can't be written: {reason}; what was there before is untouched") from error
    finally:
        with suppress(OSError):  # the folder itself may be gone, or no folder
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes renames last through a loss of power, in their order. Some systems can't open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half-written, there and below. Nobody may be writing."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON; null stands for numbers that are not there (JSON has no nan, and no inf)."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output_file(path: Path) -> None:
    """Raises UserError where a file of that name can't be written. Writes nothing itself."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} can't be written: {folder} is no folder that takes files; choose another")


def check_picture(name: str, path: Path) -> None:
    """The same for a picture, whose suffix is its format; ``name`` is that of the setting."""
    if path.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise UserError(f"{name} is {path}; the name of a picture ends in .png, .jpg, .pdf or .svg")
    check_output_file(path)


def output_folder(path: Path) -> Path:
    """Makes the folder, and makes sure, before any work starts, that files can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {path} can't be written to: {error.strerror}; choose another") from error
    return path
