import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffsight.backbones.cards import assets
from diffsight.store.run import Run

KILLS = 10


@pytest.mark.slow
def test_a_run_killed_ten_times_is_the_undisturbed_run_bit_for_bit(tmp_path):
    script = str(Path(__file__).with_name("killed_run.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, kills in (("undisturbed", 0), ("killed", KILLS)):
        command = [sys.executable, script, str(tmp_path / name), str(assets() / "samples"), str(kills)]
        subprocess.run(command, check=True, env=environment, timeout=600)
    undisturbed, killed = Run.load(tmp_path / "undisturbed"), Run.load(tmp_path / "killed")
    assert len(killed.sessions) == KILLS + 1
    for table in ("errors", "predictions"):
        assert killed.read(table).equals(undisturbed.read(table))
    metrics, killed_metrics = undisturbed.metrics(), killed.metrics()
    assert metrics.pop("speed")["seconds_per_image"] > 0  # the only numbers that are measured, not computed
    assert killed_metrics.pop("speed")["seconds_per_image"] > 0
    assert killed_metrics == metrics
