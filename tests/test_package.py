import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"routing_marl": "routing_marl", "envs": "routing_marl.envs", "agents": "routing_marl.agents"}
KNOW_EVERYBODY = {"cli", "commands", "comparison", "methods", "assembly", "bench", "bench_games", "__main__"}
"""The modules of the top that may know doors and agents."""


def modules():
    """Every module of the package by its name, each once: the links are not followed."""
    for folder, package in FOLDERS.items():
        for parent, folders, names in os.walk(ROOT / folder, followlinks=False):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in (name for name in names if name.endswith(".py")):
                path = Path(parent, name)
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join([package, *parts]).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path):
    """Full names of all that a module imports, wherever in it; a relative import counts as a name with a dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def below(name, package):
    return name == package or name.startswith(package + ".")


def test_the_modules_are_found():
    assert {"routing_marl", "routing_marl.engine", "routing_marl.baselines", "routing_marl.envs"} <= MODULES.keys()
    assert {"routing_marl.envs.routing_v0", "routing_marl.agents", "routing_marl.agents.wpl"} <= MODULES.keys()
    assert len(MODULES) == len(set(MODULES.values()))


# -- who knows whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute_and_never_of_a_top_level_envs_or_agents(module):
    for name in imports(MODULES[module]):
        assert not name.startswith("."), f"{module} imports {name}"
        assert not below(name, "envs") and not below(name, "agents"), f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if below(name, "routing_marl.agents")])
def test_agents_know_the_protocol_only(module):
    allowed = ("protocol", "randomness", "errors", "agents")
    for name in imports(MODULES[module]):
        ours = below(name, "routing_marl") and name != "routing_marl"
        if ours:
            assert any(below(name, f"routing_marl.{part}") for part in allowed), f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if below(name, "routing_marl.envs")])
def test_doors_know_neither_agents_nor_runs(module):
    for name in imports(MODULES[module]):
        for part in ("agents", "baselines", "training", "methods", "comparison", "commands", "cli"):
            assert not below(name, f"routing_marl.{part}"), f"{module} imports {name}"


def test_doors_stand_before_the_engine():
    doors = [name for name in MODULES if below(name, "routing_marl.envs")]
    assert any("routing_marl.engine" in imports(MODULES[name]) for name in doors)


@pytest.mark.parametrize(
    "module",
    [
        name
        for name in MODULES
        if not below(name, "routing_marl.envs")
        and not below(name, "routing_marl.agents")
        and name.removeprefix("routing_marl.") not in KNOW_EVERYBODY
    ],
)
def test_the_core_knows_neither_doors_nor_agents(module):
    for name in imports(MODULES[module]):
        assert not below(name, "routing_marl.envs") and not below(name, "routing_marl.agents"), f"{module}: {name}"


def test_importing_the_package_does_not_load_torch():
    code = "import sys, routing_marl, routing_marl.config, routing_marl.errors, routing_marl.cli\n"
    code += "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_begins_before_what_only_tables_and_pictures_need_is_loaded(tmp_path):
    code = f"""
import sys
from routing_marl.grid import SHIPPED
from routing_marl import training
from routing_marl.cli import main
from routing_marl.commands import train

def first_look(run, *args):
    slow = {{"pandas", "scipy", "matplotlib", "sklearn", "torchvision", "pettingzoo", "torch._dynamo"}}
    print("loaded:", sorted(slow & set(sys.modules)))
    raise SystemExit(3)

training.Run._progress = first_look
main(["train", "--suite", "digits", "--method", "wpl", "--out", {str(tmp_path / "run")!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3 and "loaded: []" in done.stdout, done.stdout + done.stderr


# -- what stands in the sources --------------------------------------------------------------------------------------


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("module", MODULES)
def test_no_global_generator_is_seeded_or_drawn_from(module):
    forbidden = re.compile(
        r"(torch|torch\.(random|cuda|mps|xpu))\.(manual_seed|manual_seed_all|seed|seed_all|set_rng_state)"
        r"|(np|numpy)\.random\.(seed|set_state|rand|randn|randint|random|choice|shuffle|permutation|normal|uniform)"
        r"|random\.(seed|random|randint|choice|shuffle|sample|uniform|setstate)"
    )
    tree = ast.parse(MODULES[module].read_text())
    called = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not [name for name in called if forbidden.fullmatch(name)]
    # Only inside fork_rng may the default generator be seeded: then nobody outside sees it.
    if "torch.default_generator.manual_seed" in called:
        inside = {
            dotted(node.func)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("fork_rng" in ast.dump(item) for item in block.items)
            for node in ast.walk(block)
            if isinstance(node, ast.Call)
        }
        assert "torch.default_generator.manual_seed" in inside


def repository_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file() and not path.is_symlink()]


def test_nothing_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.$}])/(work|root|home|Users|mnt)/\w")
    itself = Path(__file__).resolve()
    found = []
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        if path.resolve() != itself:
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in place.finditer(text)]
    assert place.search("cd /work/main") and place.search("'/root/venv'")  # or this test could not fail
    assert not found


# -- what is shipped -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_listed(project):
    listed = project["tool"]["setuptools"]["packages"]
    on_disk = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in MODULES.items()}
    assert sorted(listed) == sorted(on_disk)
    folders = project["tool"]["setuptools"]["package-dir"]
    assert {name: folders[name] for name in FOLDERS.values()} == {name: folder for folder, name in FOLDERS.items()}


@pytest.mark.parametrize("name", ["envs", "agents"])
def test_the_links_are_relative_and_lead_to_the_folders(name):
    link = ROOT / "routing_marl" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}" and (link / "__init__.py").is_file()


def test_dependencies_have_lower_bounds_only(project):
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    for requirement in (requirement for group in groups for requirement in group):
        bounds = requirement.partition(";")[0]
        assert "==" not in bounds and "<" not in bounds and "~=" not in bounds, requirement


@pytest.mark.slow
def test_the_wheel_holds_everything_under_its_own_name(tmp_path):
    # From a copy: a build in place leaves build/ and an egg-info behind, which the next build would pick up.
    source = tmp_path / "source"
    for path in repository_files():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    if not (source / "README.md").exists():
        pytest.skip("no README.md yet, which pyproject.toml names")
    for name in ("envs", "agents"):
        (source / "routing_marl" / name).symlink_to(f"../{name}")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    built = subprocess.run([*pip, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wanted = {f"{name.replace('.', '/')}{'/__init__' * (p.name == '__init__.py')}.py" for name, p in MODULES.items()}
    code = {name for name in names if ".dist-info/" not in name}
    templates = {f"routing_marl/templates/report.{ending}" for ending in ("html", "js")}
    grids = {f"routing_marl/grids/{path.name}" for path in (ROOT / "routing_marl/grids").glob("*.yaml")}
    assert grids and code == wanted | {"routing_marl/py.typed"} | templates | grids
    assert {name.partition("/")[0] for name in code} == {"routing_marl"}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "routing-marl = routing_marl.cli:main" in archive.read(entry).decode()
