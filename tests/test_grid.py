import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.grid import SHIPPED, expand, parse_vary, read_grid
from routing_marl.methods import find_method

TOML = """
methods = ["wpl", "random"]
suites = "digits"
seeds = [0, 1]
epochs = 3
lr = 1e-3
lr-decay = 1
recursive = [false, true]
advantage = "averaged"
"""
YAML = """
methods: [wpl, random]
suites: digits
seeds: [0, 1]
epochs: 3
lr: 1e-3   # which YAML takes for a word
lr-decay: 1
recursive: [no, true]
advantage: averaged
"""


@pytest.mark.parametrize(("name", "text"), [("grid.toml", TOML), ("grid.yaml", YAML), ("grid.yml", YAML)])
def test_a_file_is_read_with_the_types_of_the_settings(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    (grid,) = read_grid(tmp_path / name)
    wanted = {
        "method": ("wpl", "random"),
        "suite": ("digits",),
        "seed": (0, 1),
        "epochs": (3,),
        "lr": (0.001,),
        "lr_decay": (1.0,),
        "recursive": (False, True),
        "advantage": ("averaged",),
    }
    assert grid == wanted
    for name, values in wanted.items():
        assert [type(value) for value in grid[name]] == [type(value) for value in values]


def test_every_combination_is_there_once_and_nothing_else_has_changed():
    base = RunConfig(epochs=7, engine=EngineConfig(instances=3), agent=AgentConfig(gamma=0.5), device="cpu")
    grid = {"method": ("wpl", "random"), "rho": (0.0, 0.1), "hidden": (8, 16), "suite": ("a", "b"), "seed": (0, 1, 2)}
    configs = expand(grid, base)
    wanted = [
        replace(
            base,
            method=method,
            suite=suite,
            seed=seed,
            engine=EngineConfig(instances=3, rho=rho),
            network=NetworkConfig(hidden=hidden),
        )
        for seed, suite, rho, hidden, method in itertools.product((0, 1, 2), "ab", (0.0, 0.1), (8, 16), grid["method"])
    ]
    assert configs == wanted and len({config.name for config in configs}) == 48
    assert expand({"floor": (0.1,)}, base)[0].agent == AgentConfig(gamma=0.5, floor=0.1)


def test_tables_are_run_one_after_the_other_with_what_stands_above(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('seeds = [0, 1]\nrho = 0.1\n[[grids]]\nmethods = "wpl"\nfloor = 0.01\n[[grids]]\nrho = 0.2\n')
    first, second = read_grid(path)
    assert first == {"seed": (0, 1), "rho": (0.1,), "method": ("wpl",), "floor": (0.01,)}
    assert second == {"seed": (0, 1), "rho": (0.2,)}


def test_options_vary_settings():
    varied = parse_vary(["rho=0,0.3", "lr-decay=1", "suite=digits,some/file.npz", "recursive=true", "blocks=4"])
    assert varied == {
        "rho": (0.0, 0.3),
        "lr_decay": (1.0,),
        "suite": ("digits", "some/file.npz"),
        "recursive": (True,),
        "blocks": (4,),
    }
    assert parse_vary([]) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rho", "vary is 'rho'; it is written NAME=VALUE,VALUE"),
        ("rho=", "rho is empty; give at least one"),
        ("rho=1,1.0", "rho is 1.0,1.0; each may be given once"),
        ("rho=x", "rho is 'x'; it must be a number"),
        ("hiden=3", "there is no setting hiden; did you mean hidden?"),
        ("=3", "there is no setting ; there are methods, suites, seeds, method"),
        ("hidden=3.5", "hidden is '3.5'; it must be a whole number"),
        ("recursive=maybe", "recursive is 'maybe'; it must be true or false"),
        ("precision=fp8", "precision is 'fp8'; it must be one of fp32, bf16"),
        ("advantage=all", "advantage is 'all'; it must be one of sampled, averaged"),
        ("blocks=many", "blocks is 'many'; it must be a whole number"),
        ("device=cpu", "there is no setting device"),
    ],
)
def test_options_that_don_t_fit_are_one_line(word, message):
    with pytest.raises(UserError) as caught:
        parse_vary([word])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_nothing_is_varied_twice():
    with pytest.raises(UserError, match="vary names rho twice"):
        parse_vary(["rho=0", "rho=1"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("grid.toml", "seeds = [0", "is no TOML: "),
        ("grid.yaml", "seeds: [0", r"is no YAML \(a file in TOML is named .toml\): "),
        ("grid.yaml", "- 3", "is a list; it must hold lines like"),
        ("grid.yaml", "", "is a NoneType; it must hold lines like"),
        ("grid.toml", "seeds = [0.5]", "seeds is 0.5; it must be a whole number"),
        ("grid.toml", "seeds = [true]", "seeds is True; it must be a whole number"),
        ("grid.toml", "seeds = []", "seeds is empty"),
        ("grid.toml", "rho = inf\nmethods = 3", "methods is 3; it must be a name"),
        ("grid.yaml", "methods: [[wpl]]", r"methods is \['wpl'\]; it must be a name"),
        ("grid.yaml", "rho: {a: 1}", r"rho is {'a': 1}; it must be a number"),
        ("grid.yaml", "3: 4", "there is no setting 3"),
        ("grid.yaml", "hidden: 1.0e+400", "hidden is inf; it must be a whole number"),
        ("grid.toml", "[engine]\nrho = 1", "there is no setting engine"),
        ("grid.toml", "grids = 3", "grids in .* must be a list of tables"),
        ("grid.toml", "grids = []", "grids in .* must be a list of tables"),
    ],
)
def test_files_that_don_t_fit_are_one_line(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_grid(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_comparisons_that_come_with_the_package_are_whole(name):
    for grid in read_grid(Path(name)):
        configs = expand(grid, RunConfig())
        assert {"suite", "method", "seed", "epochs"} <= grid.keys()
        for config in configs:
            assert config.agent.given().keys() <= find_method(config.method).settings.keys()


def test_files_that_are_not_there_or_no_text_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cluster can't be read: No such file .*; those that come .* worlds_digits"):
        read_grid(Path("cluster"))
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_grid(tmp_path / "nothere.toml")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_grid(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read: it is no text"):
        read_grid(tmp_path / "binary.yaml")
