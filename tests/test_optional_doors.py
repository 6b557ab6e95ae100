"""A door whose library is not there says which extra to install."""

import importlib
import sys

import pytest

from routing_marl.errors import UserError


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("torchrl", "torchrl", "torchrl"),
        ("benchmarl", "benchmarl", "benchmarl"),
        ("sb3", "stable_baselines3", "sb3"),
        ("rllib", "ray", "rllib"),
    ],
)
def test_it_names_the_extra(module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"routing_marl.envs.{module}", raising=False)
    with pytest.raises(UserError, match=rf"pip install 'routing-marl\[{extra}\]'"):
        importlib.import_module(f"routing_marl.envs.{module}")
