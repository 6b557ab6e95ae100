"""Doors to the engine: the same game for PettingZoo, Gymnasium and TorchRL.

Importing this package puts the game into PettingZoo's registry (PettingZoo 1.27 and later have one)::

    import pettingzoo, routing_marl.envs
    env = pettingzoo.make("parallel", "routing_marl/routing-v0", suite="digits")
"""

import pettingzoo

__all__: list[str] = []

_ID = "routing_marl/routing-v0"

if hasattr(pettingzoo, "register"):
    for _kind, _registry in (("aec", pettingzoo.aec_registry), ("parallel", pettingzoo.parallel_registry)):
        if _ID not in _registry:  # a second import, after a reload, would warn
            _entry_point = f"routing_marl.envs.routing_v0:{'env' if _kind == 'aec' else 'parallel_env'}"
            pettingzoo.register(_kind, _ID, entry_point=_entry_point)
