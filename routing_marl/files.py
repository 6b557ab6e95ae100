"""Files that are either whole or not there: written beside their place, then renamed."""

import json
import os
from collections.abc import Callable
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
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise UserError(f"{path} can't be written: {error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


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
