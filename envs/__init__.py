"""Doors to the engine: the same game for PettingZoo, Gymnasium and TorchRL; and matrix games for PettingZoo.

Importing this package puts the games into the registries of PettingZoo (1.27 and later have one) and Gymnasium::

    import gymnasium, pettingzoo, routing_marl.envs
    env = pettingzoo.make("parallel", "routing_marl/routing-v0", suite="digits")
    env = gymnasium.make("routing_marl/SingleAgentRouting-v0", suite="digits")
"""

import gymnasium
import pettingzoo

__all__: list[str] = []

_IDS = {"routing_marl/routing-v0": "routing_v0", "routing_marl/matrix-game-v0": "matrix_game_v0"}

if hasattr(pettingzoo, "register"):
    for _kind, _registry in (("aec", pettingzoo.aec_registry), ("parallel", pettingzoo.parallel_registry)):
        for _id, _module in _IDS.items():
            if _id not in _registry:  # a second import, after a reload, would warn
                _entry_point = f"routing_marl.envs.{_module}:{'env' if _kind == 'aec' else 'parallel_env'}"
                pettingzoo.register(_kind, _id, entry_point=_entry_point)

_SINGLE_AGENT_ID = "routing_marl/SingleAgentRouting-v0"

if _SINGLE_AGENT_ID not in gymnasium.registry:
    gymnasium.register(
        _SINGLE_AGENT_ID,
        entry_point="routing_marl.envs.gymnasium_v0:SingleAgentRouting",
        vector_entry_point="routing_marl.envs.gymnasium_v0:SingleAgentRoutingVectorEnv",
    )
