"""Methods of one's own: ``module:factory`` on the command line, in this process and in workers."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from routing_marl.assembly import make_game
from routing_marl.cli import main
from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.layers import OwnBlocks
from routing_marl.methods import METHODS, check_settings, find_method, settings_of
from routing_marl.paper_recipes import digits
from routing_marl.recipes import make_suite
from routing_marl.results import read_results
from routing_marl.training import Run, play_episode

MODULE = '''
import torch

class FirstLegal:
    """Takes the first legal action."""

    def __init__(self, spec, seed=None, policy_rate=0.5):
        self.spec, self.seed, self.policy_rate, self.learned = spec, seed, policy_rate, 0

    def act(self, observation, *, greedy=False):
        return observation.mask.int().argmax(-1)

    def learn(self, trajectory):
        self.learned += 1
        return {}

    def state_dict(self):
        return {"learned": self.learned}

    def load_state_dict(self, state):
        self.learned = state["learned"]

def make_agent(spec, *, seed=None, **settings):
    return FirstLegal(spec, seed, **settings)

class Modest(FirstLegal):
    def __init__(self, spec, seed=None, gamma=None):
        super().__init__(spec, seed)

class Odd(FirstLegal):
    def state_dict(self):
        return {"learned": range(self.learned)}

class Broken(FirstLegal):
    def state_dict(self):
        raise KeyError("learned")

def makes_nothing(spec, seed=None):
    return object()

def fails(spec, seed=None):
    raise KeyError("what it needs")

def takes_nothing():
    pass

number = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a package in it that is not on Python's path."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    (tmp_path / "their_package" / "agents.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import a_library_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("their_package", "needs_more"))]:
        del sys.modules[name]


def test_a_factory_makes_the_agents(folder: Path) -> None:
    config = RunConfig(method="their_package.agents:FirstLegal", seed=5, agent=AgentConfig(policy_rate=0.1, gamma=0.5))
    check_settings((config.method,), AgentConfig(policy_rate=0.1))
    assert settings_of(config).agent.given() == {"policy_rate": 0.1}
    engine, agent = make_game(settings_of(config), digits(), "cpu")
    assert (agent.seed, agent.policy_rate) == (5, 0.1)  # type: ignore[attr-defined]
    assert agent.spec is engine.spec  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_there:make", "not_there can't be imported: No module named 'not_there'"),
        ("their_package.missing:make", "their_package.missing can't be imported"),
        ("needs_more:make", "needs_more can't be imported: No module named 'a_library_that_is_not_there'"),
        ("their_package.agents:other", "has no other"),
        ("their_package.agents:number", "that is a int; it must be callable"),
        ("their_package.agents:takes_nothing", "can't be called as"),
        ("their_package.agents:", "is written my_package.my_module:make_agent"),
        (":make", "is written my_package.my_module:make_agent"),
        ("a b:c", "is written my_package.my_module:make_agent"),
        ("wlp", "did you mean wpl"),
    ],
)
def test_a_bad_name_is_one_line(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_method(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_factory_makes_is_checked(folder: Path) -> None:
    config = RunConfig(method="their_package.agents:makes_nothing")
    with pytest.raises(UserError, match="made a object, which has no act, learn, state_dict, load_state_dict"):
        make_game(config, digits(), "cpu")


def test_a_factory_that_fails_is_one_line_that_says_where(folder: Path) -> None:
    config = RunConfig(method="their_package.agents:fails")
    line = MODULE.split("\n").index('    raise KeyError("what it needs")') + 1
    with pytest.raises(UserError) as error:
        make_game(config, digits(), "cpu")
    where = f"(agents.py, line {line})"
    assert str(error.value) == f"method is '{config.method}', whose factory failed: KeyError: 'what it needs' {where}"


@pytest.mark.parametrize("agent", ["Odd", "Broken"])
def test_a_state_that_no_checkpoint_can_hold_is_said_before_any_training(folder: Path, agent: str) -> None:
    config = RunConfig(method=f"their_package.agents:{agent}")
    line = f"the state_dict of {config.method} can't be kept in a checkpoint"
    with pytest.raises(UserError, match=line):
        make_game(config, digits(), "cpu")


def test_agents_without_a_policy_have_none_to_report(folder: Path) -> None:
    config = RunConfig(method="their_package.agents:Modest", engine=EngineConfig(agreement="reported"))
    with pytest.raises(UserError, match=r"agreement is 'reported', but their_package\.agents:Modest has no policy"):
        make_game(config, digits(), "cpu")


def test_a_discount_of_none_is_none(folder: Path) -> None:
    run = Run(RunConfig(method="their_package.agents:Modest", engine=EngineConfig(instances=64)))
    run.train_epoch()
    assert len(run.returns) == 1


@pytest.mark.parametrize(
    ("method", "setting"),
    [("single_agent", {"share_network": False}), ("single_agent_unlabelled", {"task_label": True})],
)
def test_what_makes_a_method_is_no_setting_of_it(method: str, setting: dict[str, bool]) -> None:
    with pytest.raises(UserError, match=f"means nothing to {method}"):
        check_settings((method,), AgentConfig(**setting))
    agents = RunConfig(method=method, agent=AgentConfig(**setting)), RunConfig(method=method)
    assert settings_of(agents[0]) == agents[1]


def test_it_is_compared_in_a_worker(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = "random,their_package.agents:make_agent"
    options = ["--seeds", "0", "--epochs", "1", "--instances", "64", "--workers", "1", "--out", "out"]
    main(["compare", "--methods", methods, *options])
    frame = read_results(folder / "out" / "results.parquet")
    assert sorted(frame["method"].unique()) == sorted(methods.split(","))
    assert "2/2" in capsys.readouterr().out


def test_every_method_of_ours_still_has_its_name() -> None:
    assert find_method("wpl").make_agent is not None


OWN_FC = NetworkConfig(blocks=2, depth=2, hidden=8, routed_convs=1, own_fc=True)


@pytest.mark.parametrize(
    ("method", "convs"), [("wpl", 2), ("oracle", 3), ("random_fixed", 2), ("shared_bottom", 1), ("gumbel_softmax", 2)]
)
def test_fully_connected_layers_of_each_tasks_own_leave_only_convolutions_to_choose(method, convs):
    engine, agent = make_game(RunConfig(method=method, network=OWN_FC), make_suite("digit_clusters"), "cpu")
    own = [module.blocks for module in engine.network.modules() if isinstance(module, OwnBlocks)]
    assert [layer.n_blocks for layer in own] == [9, 9]
    (routed,) = [layer for layer in engine.network.layers if not isinstance(layer, OwnBlocks)]
    assert (routed.n_blocks if hasattr(routed, "n_blocks") else routed.blocks.n_blocks) == convs
    assert engine.spec.n_depths == 1
    assert play_episode(engine, agent).terminated


def test_each_task_goes_on_through_its_own_layers():
    suite = make_suite("digit_clusters")
    engine, _ = make_game(RunConfig(network=OWN_FC), suite, "cpu")
    network = engine.network.eval()
    v = torch.randn(2, 9, 3, *network.shapes[-1])
    hidden, last = (tower.blocks for tower in network.towers)
    for task in range(9):
        first, second = hidden.block_parameters(task), last.block_parameters(task)
        x = torch.relu(linear(v[:, task], first["0.weight"], first["0.bias"]))
        wanted = linear(x, second["weight"], second["bias"])
        assert torch.allclose(network.logits(v)[:, task], wanted, atol=1e-6)


def test_own_fully_connected_layers_are_not_for_networks_that_mix_otherwise():
    config = RunConfig(method="cross_stitch_fc", network=OWN_FC)
    with pytest.raises(UserError, match="own-fc is True, but cross_stitch_fc mixes its layers"):
        make_game(config, make_suite("digit_clusters"), "cpu")
    with pytest.raises(UserError, match="own-fc is True; it needs --routed-convs"):
        NetworkConfig(own_fc=True)


JOINT = NetworkConfig(blocks=2, depth=2, hidden=8, routed_convs=4, joint_convs=True, own_fc=True)


@pytest.mark.parametrize("method", ["wpl", "oracle", "random_fixed", "task_specific_all", "gumbel_softmax"])
def test_joint_convolutions_are_one_choice(method):
    engine, agent = make_game(RunConfig(method=method, network=JOINT), make_suite("digit_clusters"), "cpu")
    (routed,) = [layer for layer in engine.network.layers if not isinstance(layer, OwnBlocks)]
    wanted = {"oracle": 3, "task_specific_all": 9}.get(method, 2)
    assert (routed.n_blocks if hasattr(routed, "n_blocks") else routed.blocks.n_blocks) == wanted
    assert engine.spec.n_depths == 1
    assert play_episode(engine, agent).terminated


@pytest.mark.parametrize("method", ["single_task", "cross_stitch", "mmoe", "shared_bottom", "gumbel_matrix"])
def test_every_method_takes_joint_convolutions(method):
    config = RunConfig(method=method, network=replace(JOINT, own_fc=False))
    assert play_episode(*make_game(config, make_suite("digit_clusters"), "cpu")).terminated


def test_joint_convolutions_need_convolutions():
    with pytest.raises(UserError, match="joint-convs is True; it needs --routed-convs"):
        NetworkConfig(joint_convs=True)


@pytest.mark.parametrize(
    "settings", [{}, {"routed_convs": 1}, {"routed_convs": 1, "own_fc": True}, {"recursive": True}]
)
def test_blocks_that_start_as_copies_make_the_same_of_an_image_on_every_route(settings):
    suite = make_suite("digit_clusters")

    def logits(same_start: bool, block: int):
        network = NetworkConfig(blocks=3, depth=2, hidden=8, same_start=same_start, **settings)
        engine, _ = make_game(RunConfig(network=network), suite, "cpu")
        engine.start(0)
        routes = torch.full((engine.spec.n_depths, 1, 9), block)
        with torch.no_grad():
            return engine.network.eval()(suite.images[:18].view(1, 9, 2, *suite.image_shape), routes)

    assert torch.allclose(logits(True, 0), logits(True, 2), atol=1e-6)
    assert not torch.allclose(logits(False, 0), logits(False, 2), atol=1e-2)


@pytest.mark.parametrize("method", ["task_specific_all", "gumbel_matrix", "mmoe", "cross_stitch"])
def test_blocks_of_methods_that_are_no_routers_can_start_as_copies_too(method):
    def spread(same_start: bool) -> float:
        config = RunConfig(method=method, network=NetworkConfig(depth=2, hidden=7, same_start=same_start))
        network = make_game(config, make_suite("digit_clusters"), "cpu")[0].network
        (weight,) = [p for p in network.parameters() if tuple(p.shape) in {(10, 7, 32), (9, 7, 32), (9 * 7, 32)}]
        blocks = weight.detach().view(-1, 7, 32)
        return float((blocks[:9] - blocks[0]).abs().max())

    assert spread(True) == 0 < spread(False)


def test_switch_has_a_start_of_its_own():
    with pytest.raises(UserError, match="same-start is True; blocks of switch and st_moe"):
        make_game(RunConfig(method="switch", network=NetworkConfig(same_start=True)), make_suite("digits"), "cpu")


OTHERS = [name for name, method in METHODS.items() if method.make_agent is None and name != "oracle"]
"""Those without agents; agents over networks and SARSA stand in test_network_agents."""
OTHERS += ["wpl", "wpl_original", "q_learning", "policy_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_methods_get_away_from_always_no_on_digits(name):
    run = Run(RunConfig(method=name))
    for _ in range(6):
        run.train_epoch()
    (last,) = [r["balanced_accuracy"] for r in run.rows if (r["epoch"], r["split"], r["task"]) == (6, "test", -1)]
    assert last > 0.6


@pytest.mark.slow
def test_the_oracle_gets_away_from_chance_where_it_has_clusters():
    run = Run(RunConfig(method="oracle", suite="digit_clusters"))
    for _ in range(6):
        run.train_epoch()
    (last,) = [r["accuracy"] for r in run.rows if (r["epoch"], r["split"], r["task"]) == (6, "test", -1)]
    assert last > 0.6
