"""BenchMARL: its algorithms learn our tasks; evaluation and training play one network."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import GAME, assert_learned, need, opposites

need("benchmarl", "benchmarl.algorithms", "benchmarl.experiment", "benchmarl.models.mlp")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

from benchmarl.algorithms import IppoConfig, IqlConfig, MappoConfig, QmixConfig  # noqa: E402
from benchmarl.experiment import Experiment, ExperimentConfig  # noqa: E402
from benchmarl.models.mlp import MlpConfig  # noqa: E402

from routing_marl.agents.adapters import TorchRLAgent  # noqa: E402
from routing_marl.envs.benchmarl import RoutingTask  # noqa: E402


def make(algorithm: Any, folder: Path, n_frames: int, **changes: Any) -> Experiment:
    settings = ExperimentConfig.get_from_yaml()
    settings.loggers, settings.render, settings.save_folder = ["csv"], False, str(folder)
    settings.max_n_frames, settings.gamma, settings.lr = n_frames, 1.0, 3e-3
    settings.on_policy_collected_frames_per_batch = settings.off_policy_collected_frames_per_batch = 128
    settings.on_policy_n_envs_per_worker = settings.off_policy_n_envs_per_worker = 16
    settings.on_policy_minibatch_size, settings.on_policy_n_minibatch_iters = 64, 4
    settings.off_policy_n_optimizer_steps, settings.off_policy_train_batch_size = 16, 64
    settings.evaluation_interval, settings.evaluation_episodes = 128 * 10, 4
    settings.exploration_anneal_frames = n_frames // 2
    model = MlpConfig(num_cells=[32], activation_class=torch.nn.Tanh, layer_class=torch.nn.Linear)
    task = RoutingTask.DIGITS.get_task({"suite": opposites(), **GAME, **changes})
    return Experiment(task, algorithm.get_from_yaml(), model, seed=0, critic_model_config=model, config=settings)


@pytest.mark.parametrize("algorithm", [MappoConfig, IppoConfig, QmixConfig, IqlConfig])
def test_it_learns(algorithm: Any, tmp_path: Path) -> None:
    experiment = make(algorithm, tmp_path, 128 * 30)
    experiment.run()
    engine = experiment.task.env.engine
    assert engine.updates == 128 * 30 // 16 // 2
    assert_learned(engine, TorchRLAgent(engine.spec, experiment.policy))


def test_evaluation_and_training_play_one_network(tmp_path: Path) -> None:
    experiment = make(IppoConfig, tmp_path, 128, observation="features")
    view = experiment.test_env.base_env
    experiment.test_env.rollout(4, break_when_any_done=False)
    assert view.engine.network is experiment.task.env.engine.network
    assert view.batch_size == (4,)
    assert experiment.task.env.batch_size == (16,)
    experiment.run()
    assert pickle.loads(pickle.dumps(experiment.task)).config.keys() == experiment.task.config.keys()


def test_a_task_has_a_default_config_and_reads_files(tmp_path: Path) -> None:
    assert RoutingTask.DIGITS.get_from_yaml().config["suite"] == "digits"
    path = tmp_path / "digits.yaml"
    path.write_text("instances: 3\n")
    assert RoutingTask.DIGITS.get_from_yaml(str(path)).config["instances"] == 3
