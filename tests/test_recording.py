"""Methods that other libraries trained stand in the same table as ours."""

from pathlib import Path

import pytest
import torch

from routing_marl.agents import WPL, RandomAgent
from routing_marl.config import EngineConfig, RunConfig
from routing_marl.envs.building import build_engine
from routing_marl.errors import UserError
from routing_marl.recording import record
from routing_marl.results import MEAN_TASK, read_results
from routing_marl.training import RESULTS, play_episode, train


def test_it_lands_beside_our_own_runs_with_the_same_numbers(tmp_path: Path) -> None:
    run = train(RunConfig(method="wpl", epochs=1, engine=EngineConfig(instances=64)), tmp_path)
    record(tmp_path, run.engine, run.agent, method="theirs", seed=0, wall_s=2.0)
    frame = read_results(tmp_path / RESULTS)
    columns = ["split", "task", "accuracy", "balanced_accuracy", "loss", "epoch"]
    ours = frame[(frame["method"] == "wpl") & (frame["split"] != "train")]
    theirs = frame[frame["method"] == "theirs"]
    assert ours[columns].to_numpy().tolist() == theirs[columns].to_numpy().tolist()


def test_it_records_a_curve_and_replaces_what_is_recorded_twice(tmp_path: Path) -> None:
    engine = build_engine(instances=64, seed=0)
    agent = WPL(engine.spec, seed=0)
    with pytest.raises(UserError, match="0 updates"):
        record(tmp_path, engine, agent, method="theirs", seed=0, wall_s=1.0)
    for _ in range(2):
        for _ in range(engine.steps_per_epoch):
            play_episode(engine, agent)
        record(tmp_path, engine, RandomAgent(engine.spec), method="theirs", seed=0, wall_s=1.0)
        summary = record(tmp_path, engine, agent, method="theirs", seed=0, wall_s=1.0)
    frame = read_results(tmp_path / RESULTS)
    assert frame[(frame["task"] == MEAN_TASK) & (frame["split"] == "test")]["epoch"].tolist() == [1, 2]
    assert summary["method"].tolist() == ["theirs"]


def test_an_episode_under_way_goes_on(tmp_path: Path) -> None:
    engines = [build_engine(instances=64, seed=0) for _ in range(2)]
    agents = [WPL(engine.spec, seed=0) for engine in engines]
    for engine, agent in zip(engines, agents, strict=True):
        for _ in range(engine.steps_per_epoch):
            play_episode(engine, agent)
        observation = engine.reset()
        if engine is engines[0]:
            record(tmp_path, engine, RandomAgent(engine.spec), method="theirs", seed=0, wall_s=1.0)
        for _ in range(3):
            observation = engine.step(agent.act(observation)).observation
    for name, tensor in engines[0].network.state_dict().items():
        assert torch.equal(tensor, engines[1].network.state_dict()[name])
