"""Checkpoints of runs as files: from outside, so nothing in them is trusted."""

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from routing_marl.config import RunConfig, flattened
from routing_marl.errors import UserError, described

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_FORMAT = 2


def check_storable(state: Callable[[], object], what: str) -> None:
    """Raises UserError, naming ``what``, for a state that can't be had, or not be read back from a checkpoint."""
    file = io.BytesIO()
    try:
        torch.save(state(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # of pickle, or of what the object does when it is pickled
        right = "it may hold tensors, numbers, strings, lists and dicts"
        raise UserError(f"{what} can't be kept in a checkpoint; {right} ({described(error)})") from error


def read_checkpoint(path: Path, config: RunConfig | None = None) -> dict[str, Any]:
    """Reads a checkpoint, as untrusted data.

    Args:
        path: the file.
        config: what it must be a checkpoint of (more epochs are fine); None for anything.

    Raises:
        UserError: the file is missing, cut off, no checkpoint, or of another configuration.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of other kinds of files; one error is enough
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give the checkpoint.pt of a run") from error
    except Exception as error:  # damaged files raise whatever the unpickler meets first (KeyError, IndexError, ...)
        raise UserError(f"{path} is not a readable checkpoint (cut off, or another kind of file)") from error
    if not (
        isinstance(state, dict) and state.get("format") == CHECKPOINT_FORMAT and {"config", "epoch"} <= state.keys()
    ):
        raise UserError(f"{path} is not a checkpoint of this version (format {CHECKPOINT_FORMAT})")
    if config is not None:
        ours = flattened(replace(config, epochs=1).identity())
        # What an older version could not be told was as it is by default.
        theirs = flattened(RunConfig().identity()) | flattened({**state["config"], "epochs": 1})
        different = [name for name in ours if ours[name] != theirs[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{path} is of another configuration: {', '.join(different)} differ "
                f"({name} was {theirs[name]!r}, now {ours[name]!r}); choose another --out"
            )
    return state
