"""The snippets of docs/clients.md run as they stand."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from toys import need

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LIBRARIES = ("benchmarl", "ray", "sb3_contrib", "stable_baselines3", "supersuit", "torchrl")


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_it_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = SNIPPETS[number]
    need(*(library for library in LIBRARIES if re.search(rf"^(from|import) {library}\b", snippet, re.MULTILINE)))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(snippet, f"docs/clients.md, snippet {number}", "exec"), namespace)
