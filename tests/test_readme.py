"""What README shows runs: its Python snippets, and its commands as far as their options go."""

import re
import shlex
from pathlib import Path

import pytest

from routing_marl import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.split("\n")[0][:40])
def test_snippets_run(snippet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def commands() -> list[str]:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("routing-marl")])
def test_commands_are_well_formed(command):
    # CI runs the first of them; the others take hours or data.
    cli.parse(shlex.split(command)[1:])


def test_the_two_commands_come_first():
    first = blocks("bash")[0]
    assert "pip install -e . && routing-marl compare" in first
    assert 'pip install -e ".[test]" && pytest' in first


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()
