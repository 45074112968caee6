import time

import pytest

from diffsight.store.stopwatch import Stopwatch


def test_sessions_add_up_also_those_that_fail(tmp_path):
    file = tmp_path / "new" / "seconds.json"

    def stopped():
        with Stopwatch(file).running("part"):
            time.sleep(0.02)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    first = Stopwatch(file).spent("part")
    assert first >= 0.02
    Stopwatch(file).add("part", 1.5)
    Stopwatch(file).add("other", 3.0)
    assert Stopwatch(file).spent("part") == pytest.approx(first + 1.5)
    assert Stopwatch(file).spent("other") == 3.0
    assert Stopwatch(file).spent("third") == 0.0


def test_a_damaged_file_is_not_worth_a_refusal(tmp_path):
    file = tmp_path / "seconds.json"
    file.write_text("{")
    assert Stopwatch(file).spent("part") == 0.0
    Stopwatch(file).add("part", 2.0)
    assert Stopwatch(file).spent("part") == 2.0
