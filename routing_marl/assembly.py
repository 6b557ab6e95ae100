"""The game of a run: its engine, network and agents, put together as its method says."""

from dataclasses import asdict
from functools import partial

import torch

from routing_marl.agents import FixedRoutes
from routing_marl.baselines import static
from routing_marl.checkpoints import check_storable
from routing_marl.config import RunConfig
from routing_marl.engine import RoutingEngine
from routing_marl.errors import UserError, described
from routing_marl.methods import METHODS, MakeAgent, Share, find_method, settings_of
from routing_marl.network import MakeNetwork, routing_all_fc
from routing_marl.protocol import Agent, GameSpec
from routing_marl.suites import TaskSuite


def make_game(config: RunConfig, suite: TaskSuite, device: str) -> tuple[RoutingEngine, Agent]:
    """The engine and the agents of a run."""
    method = find_method(config.method)
    network = make_network(config, suite)
    engine = RoutingEngine(suite, network, config.engine, features=method.features, device=device, seed=config.seed)
    if method.make_agent is not None:
        return engine, build_agent(method.make_agent, engine.spec, config)
    if method.sharing is not None:
        return engine, FixedRoutes(engine.spec, _shared(method.sharing, suite, config).table)
    return engine, FixedRoutes(engine.spec, torch.zeros(1, suite.n_tasks, dtype=torch.long))


def _shared(share: Share, suite: TaskSuite, config: RunConfig) -> static.Sharing:
    """The blocks of all layers; and who takes which of the routed ones, which leaves out layers of each task's own."""
    blocks, table = share(suite, config)
    if not config.network.own_fc:
        return static.Sharing(blocks, table)
    n_routed = len(blocks) - config.network.depth
    return static.Sharing((*blocks[:n_routed], *[suite.n_tasks] * config.network.depth), table[:n_routed])


def make_network(config: RunConfig, suite: TaskSuite) -> MakeNetwork:
    """What builds the network of a run."""
    method, settings = find_method(config.method), config.network
    layers = asdict(settings)
    if not settings.recursive:
        layers["blocks"] = settings.layer_blocks(suite.n_tasks)
    if method.make_agent is not None:
        return partial(routing_all_fc, **layers)
    if settings.recursive:
        raise UserError(f"{config.method} has layers of its own at each depth; it can't be recursive")
    if method.sharing is not None:
        blocks = _shared(method.sharing, suite, config).blocks
        fixed = {"blocks": blocks, "allow_pass": False}
        if (conv_layers := len(blocks) - settings.depth) != settings.conv_layers:  # a method that shares nothing
            fixed |= {"routed_convs": conv_layers, "joint_convs": False}
        return partial(routing_all_fc, **{**layers, **fixed})
    assert method.network is not None
    for name in ("recursive", "allow_pass", "allow_stop"):
        del layers[name]
    if not method.own_fc:
        del layers["own_fc"]
        if settings.own_fc:
            able = ", ".join(name for name, other in METHODS.items() if other.own_fc)
            right = f"own-fc is for routers, fixed sharing and {able}"
            raise UserError(f"own-fc is True, but {config.method} mixes its layers as it does; {right}")
    return partial(method.network, **layers, **settings_of(config).agent.given())


def build_agent(make: MakeAgent, spec: GameSpec, config: RunConfig) -> Agent:
    """The agents of a run, with those of the config's settings that are theirs."""
    try:
        agent: Agent = make(spec, seed=config.seed, **settings_of(config).agent.given())
    except Exception as error:
        if isinstance(error, UserError) or ":" not in config.method:
            raise
        raise UserError(f"method is {config.method!r}, whose factory failed: {described(error)}") from error
    if not isinstance(agent, Agent):
        missing = [name for name in ("act", "learn", "state_dict", "load_state_dict") if not hasattr(agent, name)]
        raise UserError(f"{config.method} made a {type(agent).__name__}, which has no {', '.join(missing)}")
    if config.engine.agreement == "reported" and not (hasattr(agent, "policy") or hasattr(agent, "reported")):
        raise UserError(f"agreement is 'reported', but {config.method} has no policy to report; it must be 'empirical'")
    if ":" in config.method:
        check_storable(agent.state_dict, f"the state_dict of {config.method}")
    return agent
