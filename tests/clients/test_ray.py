"""Comparisons on Ray: two machines, simulated by Ray's own test cluster, of which one is lost in the middle."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import need

os.environ.setdefault("OMP_NUM_THREADS", "1")
need("ray", "ray.cluster_utils")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from routing_marl.checkpoints import CHECKPOINT  # noqa: E402
from routing_marl.clusters import ray_runner  # noqa: E402
from routing_marl.comparison import RUNS, compare  # noqa: E402
from routing_marl.config import EngineConfig, NetworkConfig, RunConfig  # noqa: E402
from routing_marl.errors import UserError  # noqa: E402
from routing_marl.training import Progress  # noqa: E402

EPOCHS = 6
SUICIDE = '''
import os, signal
from routing_marl.agents import RandomAgent

class Suicide(RandomAgent):
    """Takes its process with it, in the middle of the second epoch; once, or always."""

    def learn(self, trajectory):
        self.calls = getattr(self, "calls", 0) + 1
        if {condition}:
            open({marker!r}, "a").write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().learn(trajectory)
'''


def configs(suite: Path, *methods: str, epochs: int = EPOCHS) -> list[RunConfig]:
    small: dict[str, Any] = {"engine": EngineConfig(instances=4), "network": NetworkConfig(hidden=8, depth=2)}
    return [
        RunConfig(method, str(suite), seed, epochs=epochs, device="cpu", **small)
        for seed in (0, 1)
        for method in methods
    ]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred images: an epoch has 75 updates."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 2))
    images = rng.integers(0, 60, (400, 8, 8)) + 150 * labels[:, :1, None]
    path = tmp_path_factory.mktemp("suite") / "two.npz"
    images = images.astype(np.uint8)
    np.savez(path, x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:])
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing, and two machines of one CPU. The last test that takes it breaks it."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        yield from start_cluster()


def start_cluster() -> Iterator[Cluster]:
    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    machines = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
    cluster.machines = machines
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def timeless(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=["wall_s", "instances_per_s"])


def test_a_cluster_that_is_not_there_is_one_line(suite: Path, tmp_path: Path) -> None:
    units = configs(suite, "random", epochs=1)
    with pytest.raises(UserError, match=r"ray is 'auto', but no cluster answers there") as caught:
        compare(units, tmp_path, runner=ray_runner("auto"))
    assert "\n" not in str(caught.value)


def test_a_local_cluster_of_its_own_ends_with_the_comparison(suite: Path, tmp_path: Path) -> None:
    frame, failures = compare(configs(suite, "random", epochs=1), tmp_path, runner=ray_runner("local"))
    assert failures == [] and set(frame["seed"]) == {0, 1} and not ray.is_initialized()


@pytest.mark.parametrize(("condition", "ends_well"), [("self.calls == 100 and not {again}", True), ("True", False)])
def test_a_worker_that_dies_is_retried_from_its_checkpoint_and_given_up_in_the_end(
    cluster: Cluster, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, ends_well: bool
) -> None:
    marker = str(tmp_path / "died")
    condition = condition.format(again=f"os.path.exists({marker!r})")
    module = f"suicidal_{ends_well}"
    (tmp_path / f"{module}.py").write_text(SUICIDE.format(condition=condition, marker=marker))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (mortal, _) = configs(suite, f"{module}:Suicide", epochs=3)
    others = configs(suite, "random", epochs=3)
    reports: list[Progress] = []
    frame, failures = compare(
        [mortal, *others], tmp_path / "out", runner=ray_runner("auto"), on_progress=reports.append
    )
    assert set(frame["method"]) == {"random"} | ({mortal.method} if ends_well else set())
    if ends_well:
        assert failures == [] and Path(marker).read_text() == "x"
        rows = frame[frame["method"] == mortal.method]
        assert set(rows["epoch"]) == {1, 2, 3}
    else:
        assert [failure.config for failure in failures] == [mortal]
        assert failures[0].reason.startswith("its worker died 3 times") and Path(marker).read_text() == "xxx"


def test_a_run_that_was_begun_here_is_finished_there(cluster: Cluster, suite: Path, tmp_path: Path) -> None:
    units = configs(suite, "wpl", epochs=3)
    expected, _ = compare(units, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        compare(units, tmp_path / "parts", on_progress=stop)
    assert (tmp_path / "parts" / RUNS / units[0].name / CHECKPOINT).exists()
    reports: list[Progress] = []
    frame, failures = compare(units, tmp_path / "parts", runner=ray_runner("auto"), on_progress=reports.append)
    assert failures == []
    assert min(report.epoch for report in reports if report.run == units[0].name) >= 2
    pd.testing.assert_frame_equal(timeless(frame), timeless(expected), check_exact=True)


def test_nothing_is_lost_with_a_machine(cluster: Cluster, suite: Path, tmp_path: Path) -> None:
    units = configs(suite, "wpl", "q_learning")
    expected, _ = compare(units, tmp_path / "here")
    reports: list[Progress] = []
    lost: list[float] = []

    def watch(progress: Progress) -> None:
        reports.append(progress)
        if not lost and len({report.run for report in reports}) >= 2 and progress.epoch >= 3:
            lost.append(time.monotonic())
            cluster.remove_node(cluster.machines[0], allow_graceful=False)

    frame, failures = compare(units, tmp_path / "there", runner=ray_runner("auto"), on_progress=watch)
    assert lost and failures == []
    pd.testing.assert_frame_equal(timeless(frame), timeless(expected), check_exact=True)
    for config in units:
        here, there = (
            {path.name for path in (tmp_path / place / RUNS / config.name).iterdir()} for place in ("here", "there")
        )
        assert here == there
    deadline = time.monotonic() + 120  # Ray may take a while until it takes a silent machine for lost
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(ray.nodes()) == 3 and sum(node["Alive"] for node in ray.nodes()) == 2
