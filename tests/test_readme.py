"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
LONG = "plan_distillation", "toy_sweep"  # minutes each


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"block {i}", marks=[pytest.mark.slow] if any(name in block for name in LONG) else [])
        for i, block in enumerate(BLOCKS)
    ],
)
def test_the_block_runs_in_a_folder_of_its_own(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_there_are_blocks_for_the_plan_and_for_a_stage():
    assert any("plan_distillation" in block for block in BLOCKS)
    assert any("FloorPredictor" in block for block in BLOCKS)
