"""Methods by name: what the command line and the comparisons call a network with its agents."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from routing_marl.agents import (
    SARSA,
    WPL,
    ActorCritic,
    ActorCriticNetwork,
    PolicyGradient,
    PolicyGradientNetwork,
    QLearning,
    QNetwork,
    RandomAgent,
    SARSANetwork,
    WPLNetwork,
)
from routing_marl.agents.dispatcher import dispatcher_of_networks
from routing_marl.agents.fixed import random_groups
from routing_marl.baselines import static
from routing_marl.baselines.cross_stitch import cross_stitch, cross_stitch_fc
from routing_marl.baselines.mixture import GumbelMatrix, gumbel_softmax, mmoe, soft_routing
from routing_marl.baselines.sparse import st_moe, switch
from routing_marl.config import AgentConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.network import UnroutedNetwork
from routing_marl.protocol import Agent
from routing_marl.suites import TaskSuite

MakeAgent = Callable[..., Agent]
Share = Callable[[TaskSuite, RunConfig], static.Sharing]


@dataclass(frozen=True)
class Method:
    """A network and the agents that route it.

    Attributes:
        summary: one line for people.
        source: where it comes from.
        make_agent: builds the agents from a spec, a seed and settings; None where the sharing is static.
        sharing: who shares what, where that never changes.
        network: builds a network without routers, where the method is one.
        features: whether agents see the representation that they route.
        own_fc: whether a network without routers can leave the fully connected layers to the tasks.
        fixed: names of settings that make the method what it is, and so are none of its own.
    """

    summary: str
    source: str
    make_agent: MakeAgent | None = None
    sharing: Share | None = None
    network: Callable[..., UnroutedNetwork] | None = None
    features: bool = False
    own_fc: bool = False
    fixed: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, with their defaults."""
        factory = self.make_agent or self.network
        if factory is None:
            return {}
        known = inspect.signature(factory).parameters
        return {name: known[name].default for name in vars(AgentConfig()) if name in {*known} - {*self.fixed}}


def _of_layers(share: Callable[[int, int, int], static.Sharing]) -> Share:
    """Sharing that depends on the number of tasks and layers only."""
    return lambda suite, config: share(suite.n_tasks, config.network.depth, config.network.conv_layers)


def _single_task(suite: TaskSuite, config: RunConfig) -> static.Sharing:
    return static.task_specific_all(suite.n_tasks, config.network.depth, config.network.convs)


def _random_fixed(suite: TaskSuite, config: RunConfig) -> static.Sharing:
    blocks = tuple(min(n, suite.n_tasks) for n in config.network.layer_blocks(suite.n_tasks))
    return static.Sharing(blocks, random_groups(suite.n_tasks, blocks, config.seed))


def _oracle(suite: TaskSuite, config: RunConfig) -> static.Sharing:
    if suite.clusters is None:
        raise UserError(f"method is 'oracle', but suite {suite.name} has no known clusters of tasks; take another")
    return static.oracle(suite.clusters, config.network.depth, config.network.conv_layers)


_PAPER = "Rosenbaum et al. 2018, arXiv 1711.01239"

METHODS: dict[str, Method] = {
    "wpl": Method("weighted policy learner, weighted as the paper says", f"{_PAPER}, Algorithm 2", WPL),
    "wpl_original": Method(
        "weighted policy learner, weighted as its authors say",
        "Abdallah and Lesser 2008, JAIR 33",
        partial(WPL, weighting="original", advantage="averaged"),
    ),
    "q_learning": Method("tabular Q-learning over task and depth", "Watkins and Dayan 1992", QLearning),
    "policy_gradient": Method("tabular REINFORCE with a learned baseline", "Williams 1992", PolicyGradient),
    "sarsa": Method("tabular SARSA over task and depth", "Rummery and Niranjan 1994", SARSA),
    "actor_critic": Method("tabular actor-critic (A2C)", "Mnih et al. 2016, arXiv 1602.01783", ActorCritic),
    "wpl_network": Method(
        "networks moved to where WPL would move a policy", f"{_PAPER} (left open there)", WPLNetwork, features=True
    ),
    "q_network": Method(
        "Q-learning with a network per agent, or a shared one", "Mnih et al. 2015, Nature 518", QNetwork, features=True
    ),
    "sarsa_network": Method(
        "SARSA with a network per agent, or a shared one", "Rummery and Niranjan 1994", SARSANetwork, features=True
    ),
    "policy_gradient_network": Method(
        "REINFORCE with a network per agent, or a shared one", "Williams 1992", PolicyGradientNetwork, features=True
    ),
    "actor_critic_network": Method(
        "actor-critic (A2C) with a network per agent, or a shared one",
        "Mnih et al. 2016, arXiv 1602.01783",
        ActorCriticNetwork,
        features=True,
    ),
    "single_agent": Method(
        "one agent routes all tasks (A2C); it sees the task",
        _PAPER,
        partial(ActorCriticNetwork, share_network=True),
        features=True,
        fixed=("share_network",),
    ),
    "single_agent_unlabelled": Method(
        "one agent routes all tasks (A2C), and does not see which",
        _PAPER,
        partial(ActorCriticNetwork, share_network=True, task_label=False),
        features=True,
        fixed=("share_network", "task_label"),
    ),
    "dispatcher": Method(
        "an agent assigns each decision to one of K routing agents (A2C)", _PAPER, dispatcher_of_networks, features=True
    ),
    "random": Method("a new random route at every decision", _PAPER, RandomAgent),
    "shared_bottom": Method(
        "a shared layer, then a tower per task",
        "Caruana 1997; Ma et al. 2018",
        sharing=_of_layers(static.shared_bottom),
    ),
    "task_specific_1_fc": Method(
        "all shared but the last layer", _PAPER, sharing=_of_layers(static.task_specific_1_fc)
    ),
    "task_specific_all_fc": Method(
        "fully connected layers of each task's own", _PAPER, sharing=_of_layers(static.task_specific_all_fc)
    ),
    "task_specific_all": Method(
        "all routed layers of each task's own, convolutions too", _PAPER, sharing=_of_layers(static.task_specific_all)
    ),
    "single_task": Method("a network of its own for each task", "Caruana 1997", sharing=_single_task),
    "random_fixed": Method("tasks dealt to blocks at random, once and for all", _PAPER, sharing=_random_fixed),
    "oracle": Method("tasks share blocks by the suite's known clusters", "the upper bound", sharing=_oracle),
    "cross_stitch": Method(
        "a column of layers per task, mixed after each layer",
        "Misra et al. 2016, arXiv 1604.03539",
        network=cross_stitch,
    ),
    "cross_stitch_fc": Method(
        "columns for the routed layers only", "Misra et al. 2016, arXiv 1604.03539", network=cross_stitch_fc
    ),
    "mmoe": Method("experts, mixed by a gate per task, then towers", "Ma et al. 2018, KDD", network=mmoe),
    "soft_routing": Method("each task mixes all blocks by a softmax", _PAPER, network=soft_routing, own_fc=True),
    "gumbel_softmax": Method(
        "each task draws a block, straight-through",
        "Jang et al. 2017, arXiv 1611.01144",
        network=gumbel_softmax,
        own_fc=True,
    ),
    "gumbel_matrix": Method(
        "each task takes any subset of the blocks",
        "Maziarz et al. 2019, arXiv 1910.04915",
        network=GumbelMatrix,
        own_fc=True,
    ),
    "switch": Method(
        "each instance takes its best block, room permitting", "Fedus et al. 2021, arXiv 2101.03961", network=switch
    ),
    "st_moe": Method("each instance takes its two best blocks", "Zoph et al. 2022, arXiv 2202.08906", network=st_moe),
}


def find_method(name: str) -> Method:
    """The method of that name; UserError names those that there are.

    ``module:factory`` is a method of one's own: ``factory(spec, seed=...)`` makes the agents; its parameters that have
    the name of one in :class:`~routing_marl.config.AgentConfig` are its settings. Modules are looked for in the working
    directory too. A factory with a true attribute ``features`` gets observations with them.
    """
    if ":" in name:
        factory = _find_factory(name)
        return Method(f"made by {name}", "of your own", factory, features=getattr(factory, "features", False))
    if name not in METHODS:
        close = get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        right = f"it must be one of {', '.join(METHODS)}, or module:factory of your own"
        raise UserError(f"method is {name!r}; {right}{hint}")
    return METHODS[name]


def _find_factory(name: str) -> MakeAgent:
    module_name, _, attribute = name.partition(":")
    if not (attribute and all(part.isidentifier() for part in (*module_name.split("."), *attribute.split(".")))):
        raise UserError(f"method is {name!r}; a method of your own is written my_package.my_module:make_agent")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the console script's own folder stands there instead
    try:
        factory = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"method is {name!r}, but {module_name} can't be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(factory, part):
            raise UserError(f"method is {name!r}, but {module_name} has no {attribute}; is its name right?")
        factory = getattr(factory, part)
    if not callable(factory):
        raise UserError(f"method is {name!r}, but that is a {type(factory).__name__}; it must be callable")
    try:
        inspect.signature(factory).bind(None, seed=0)
    except TypeError as error:
        raise UserError(f"method is {name!r}, which can't be called as factory(spec, seed=0): {error}") from error
    return factory


def check_settings(methods: tuple[str, ...], agent: AgentConfig) -> None:
    """Raises UserError for a setting that none of the methods has."""
    for setting in agent.given():
        if not any(setting in find_method(name).settings for name in methods):
            owners = [name for name, method in METHODS.items() if setting in method.settings]
            option = setting.replace("_", "-")
            raise UserError(f"{option} means nothing to {', '.join(methods)}; it is a setting of {', '.join(owners)}")


def settings_of(config: RunConfig) -> RunConfig:
    """The config without settings that its method doesn't have (a comparison gives all to all)."""
    known = find_method(config.method).settings
    given = {name: value for name, value in config.agent.given().items() if name in known}
    return replace(config, agent=AgentConfig(**given))  # type: ignore[arg-type]
