import base64
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from test_training import one_thread, tiny_config, train, write_tiny_npz  # noqa: F401 (a fixture)

from routing_marl import comparison, report_details
from routing_marl.cli import main
from routing_marl.errors import UserError
from routing_marl.report import content, render, write_report
from routing_marl.results import table, write_results
from routing_marl.statistics import half_interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def score(epoch, task, seed, method=0):
    return 0.5 + 0.05 * epoch - 0.01 * task + 0.003 * seed**2 + 0.02 * method


def rows_of(name, method, seed, epochs=3, tasks=2, place=0, split="test"):
    """Made-up rows of one run."""
    return [
        {
            "run": name,
            "suite": "made_up",
            "method": method,
            "settings": "",
            "seed": seed,
            "epoch": epoch,
            "split": split,
            "task": task,
            "accuracy": (accuracy := score(epoch, max(task, 0), seed, place)),
            "balanced_accuracy": accuracy / 2,
            "loss": 1 - accuracy,
            "wall_s": 1.5 * epoch,
            "instances_per_s": 1000.0,
            "parameters": 1e5,
            "multiply_adds": 1e6,
        }
        for epoch in range(1, epochs + 1)
        for task in range(-1, tasks)
    ]


def write_routes(folder, epochs=3, depths=2, tasks=2, actions=4, names=None, policy=True):
    folder.mkdir(parents=True)
    shares = np.random.default_rng(0).dirichlet(np.ones(actions), (epochs, depths, tasks)).astype(np.float32)
    arrays = {"usage": shares, **({"policy": shares} if policy else {})}
    legal = np.ones((depths, actions), bool)
    task_names = np.array(names or [f"task {t}" for t in range(tasks)])
    np.savez(folder / "routes.npz", legal=legal, n_blocks=np.array(actions - 1), task_names=task_names, **arrays)
    return shares


def made_up(folder, methods=("wpl", "random"), seeds=range(3), **shape):
    """A comparison's folder of made-up runs, the routes of all of them alike."""
    rows = []
    for place, method in enumerate(methods):
        for seed in seeds:
            name = f"{place}-{seed}"
            rows += rows_of(name, method, seed, shape.get("epochs", 3), shape.get("tasks", 2), place)
            write_routes(folder / "runs" / name, **shape)
            config = {"method": method, "seed": seed, "engine": {"rho": 0.3}, "network": {"blocks": None}}
            (folder / "runs" / name / "config.json").write_text(json.dumps(config))
    write_results(folder / "results.parquet", table(rows))
    return folder


class Page(HTMLParser):
    """What stands in a page: cells of tables, scripts, and all that could be loaded."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.scripts, self.loads, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        loading = {"src", "href", "data", "action", "srcset", "poster"}
        self.loads += [value for name, value in attributes if name in loading]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "td":
            self.cells.append(data.strip())
        elif self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


# -- what the page says ----------------------------------------------------------------------------------------------


def test_curves_are_means_with_student_intervals(tmp_path):
    made_up(tmp_path)
    facts = content(tmp_path)["data"]["suites"]["made_up"]
    assert facts["methods"] == ["random", "wpl"]  # the best first
    curve = facts["curves"]["test"][1]
    values = [[score(epoch, 0, seed) for seed in range(3)] for epoch in (1, 2, 3)]
    assert curve["epoch"] == [1, 2, 3] and curve["wall_s"] == [1.5, 3.0, 4.5]
    np.testing.assert_allclose(curve["accuracy"], np.mean(values, axis=1), rtol=1e-4)
    np.testing.assert_allclose(curve["accuracy_ci"], [half_interval(of) for of in values], rtol=1e-4)


def test_time_to_accuracy_is_the_median_over_seeds_and_nothing_where_half_never_get_there(tmp_path):
    rows = []
    for seed, reached in enumerate(([0.1, 0.9], [0.5, 0.9], [0.1, 0.2])):
        of_seed = rows_of(str(seed), "wpl", seed, epochs=2)
        rows += [{**row, "accuracy": reached[row["epoch"] - 1]} for row in of_seed]
    write_results(tmp_path / "results.parquet", table(rows))
    reached = content(tmp_path)["data"]["suites"]["made_up"]["reached"]
    found = dict(zip(reached["target"], reached["epoch"][0], strict=True))
    assert found[0.1] == 1  # all at once
    assert found[0.14] == 2 and found[0.9] == 2  # 2, 1, 2 and 2, 2, never


def test_routes_and_settings_of_single_runs(tmp_path):
    made_up(tmp_path)
    shares = np.load(tmp_path / "runs" / "1-2" / "routes.npz")["usage"]
    data = content(tmp_path)["data"]
    (run,) = (run for run in data["runs"] if run["run"] == "1-2")
    assert data["common"]["config"] == {"engine.rho": "0.3"} and run["config"] == {"method": "random", "seed": "2"}
    routes = run["routes"]
    assert (routes["epochs"], routes["shape"], routes["blocks"]) == ([1, 2, 3], [3, 2, 2, 4], 3)
    unpacked = np.frombuffer(base64.b64decode(routes["usage"]), np.uint8).reshape(routes["shape"]) / 255
    np.testing.assert_allclose(unpacked, shares, atol=0.5 / 255 + 1e-6)
    assert data["diagnostics"]["made_up"][0]["entropy"]["1"]["epoch"] == [1, 2, 3]


def test_what_is_too_much_is_left_out_evenly(tmp_path, monkeypatch):
    """The first seeds of all methods go before a second one; a long run loses epochs inside."""
    made_up(tmp_path, epochs=9, policy=False)
    size = len(content(tmp_path)["data"]["runs"][0]["routes"]["usage"])
    monkeypatch.setattr(report_details, "_ROUTE_BYTES", 3 * size)
    monkeypatch.setattr(report_details, "_MOST_DIAGNOSED", 2)
    data = content(tmp_path)["data"]
    assert [run["run"] for run in data["runs"] if run["routes"]] == ["1-0", "0-0", "1-1"]  # random is the better one
    assert data["diagnosed"] == 2 and data["diagnostics"]["made_up"].keys() == {0, 1}
    monkeypatch.setattr(report_details, "_RUN_BYTES", size // 2)
    (first, *_) = content(tmp_path)["data"]["runs"]
    assert first["routes"]["epochs"] == [1, 4, 6, 9] and len(first["routes"]["usage"]) <= size // 2


def test_the_page_stands_alone_and_shows_the_table(tmp_path):
    page = Page(render(content(made_up(tmp_path))))
    assert page.loads == ["data:,"]
    assert "wpl" in page.cells and "random" in page.cells
    mean = np.mean([score(3, 0, seed) for seed in range(3)])
    half = half_interval([score(3, 0, seed) for seed in range(3)])
    assert f"{100 * mean:.1f} ± {100 * half:.1f}" in page.cells
    ours = page.scripts[0] + page.scripts[-1]
    assert not re.search(r"https?://", ours) and "fetch(" not in ours and "import(" not in ours


def test_names_from_files_can_not_become_markup(tmp_path):
    evil = "</script><img src=http://evil/x onerror=alert(1)>"
    made_up(tmp_path, methods=("wpl", evil), seeds=[0], names=[evil, "<b>&amp;"])
    text = render(content(tmp_path))
    page = Page(text)
    assert page.loads == ["data:,"] and "img" not in page.tags and evil in page.cells
    (data,) = (json.loads(script) for script in page.scripts if script.startswith('{"split"'))
    assert evil in data["suites"]["made_up"]["methods"] and data["runs"][0]["routes"]["tasks"][1] == "<b>&amp;"


def test_a_single_seed_has_no_intervals_and_says_so(tmp_path):
    what = content(made_up(tmp_path, methods=("wpl",), seeds=[0]))
    assert "one seed" in what["notes"][0] and "one seed" in render(what)
    facts = what["data"]["suites"]["made_up"]
    assert facts["final"]["accuracy_ci"] == [None] and facts["curves"]["test"][0]["accuracy_ci"] == [None] * 3
    assert "±" not in "".join(Page(render(what)).cells)


def test_a_table_alone_is_enough(tmp_path):
    """Recorded by somebody else's training: no folders of runs, no configuration."""
    write_results(tmp_path / "any.parquet", table(rows_of("", "ppo", 0) + rows_of("", "ppo", 1)))
    what = content(tmp_path / "any.parquet")
    assert [run["routes"] for run in what["data"]["runs"]] == [None, None] and what["data"]["diagnostics"] == {}
    assert "ppo" in Page(render(what)).cells


def test_five_hundred_runs(tmp_path):
    rows = []
    for place in range(50):
        for seed in range(10):
            name = f"{place}-{seed}"
            rows += rows_of(name, f"method {place}", seed, 20, 3, place)
    for place in range(0, 50, 5):
        write_routes(tmp_path / "runs" / f"{place}-0", 20, 3, 3, 11)
    write_results(tmp_path / "results.parquet", table(rows))
    begun = time.process_time()
    facts = write_report(tmp_path, tmp_path / "report.html")
    assert time.process_time() - begun < 30
    assert facts["runs"] == 500 and (tmp_path / "report.html").stat().st_size < 10e6


def test_results_that_are_none(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        content(tmp_path)
    write_results(tmp_path / "results.parquet", table([]))
    with pytest.raises(UserError, match="has no rows"):
        content(tmp_path)
    made_up(tmp_path / "broken", methods=("wpl",), seeds=[0])
    (tmp_path / "broken" / "runs" / "0-0" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not a readable JSON file"):
        content(tmp_path / "broken")


# -- a real one ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three methods, two seeds: one whose routes change, one that has none to choose, one without a policy."""
    folder = tmp_path_factory.mktemp("real")
    npz = write_tiny_npz(folder / "tiny.npz")
    methods = ("wpl", "shared_bottom", "single_task")
    configs = [tiny_config(npz, method=method, seed=seed) for method in methods for seed in range(2)]
    comparison.compare(configs, folder / "out")
    return folder / "out"


def test_the_command(real, tmp_path, capsys):
    main(["report", str(real), "--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "facts.json")])
    assert "6 runs of 3 methods in" in capsys.readouterr().out
    assert json.loads((tmp_path / "facts.json").read_text())["runs"] == 6
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.loads == ["data:,"] and {"wpl", "shared_bottom", "single_task"} <= set(page.cells)
    data = content(real)["data"]
    assert data["common"]["environment"]["device"] == "cpu" and data["common"]["config"]["epochs"] == "2"


def test_the_folder_of_a_single_run(real):
    (run,) = [path for path in (real / "runs").iterdir() if "-wpl-0-" in path.name]
    what = content(run)
    assert what["facts"]["runs"] == 1 and what["data"]["runs"][0]["routes"]["tasks"] == ["below", "corner", "quarter"]


def in_chromium(folder, page, *options):
    """Opens a page without a network; its log."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, re.findall(r".*CONSOLE.*", done.stderr)
    return done.stdout


CLICK_EVERYTHING = """
<script>
const change = (select) => { for (const option of select.options) { select.value = option.value; select.onchange(); } };
document.querySelectorAll("select").forEach(change);
if (!document.getElementById("with-routes").hidden) {
  document.getElementById("epoch").value = 0;
  document.getElementById("epoch").oninput();
  document.getElementById("play").click();
}
for (const id of ["none", "all"]) document.getElementById(id).click();
document.querySelectorAll(".chip").forEach((chip) => chip.click());
document.querySelectorAll(".chip").forEach((chip) => chip.click());
document.documentElement.dataset.clicked = "yes";
document.documentElement.dataset.wider = document.documentElement.scrollWidth - window.innerWidth;
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("kind", ["real", "hundreds", "table"])
def test_chromium_draws_it_without_an_error(kind, real, tmp_path):
    if kind == "real":
        folder = real
    elif kind == "hundreds":
        names = [f"method {i}" for i in range(24)] + ["</script><b>bold"]
        folder = made_up(tmp_path / "many", methods=names, seeds=range(20), epochs=8)
    else:
        folder = tmp_path / "any.parquet"
        write_results(folder, table(rows_of("", "ppo", 0) + rows_of("", "ppo", 1, split="train")))
    page = tmp_path / "page.html"
    write_report(folder, page)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", CLICK_EVERYTHING + "</body>"), encoding="utf-8")
    dom = in_chromium(tmp_path, page, "--window-size=500,4000", "--dump-dom")
    assert 'data-drawn="yes"' in dom and 'data-clicked="yes"' in dom
    assert int(re.search(r'data-wider="(-?\d+)"', dom)[1]) <= 0  # nothing has to be scrolled to the side
    assert dom.count('class="main-svg"') >= (3 if kind == "table" else 20)
