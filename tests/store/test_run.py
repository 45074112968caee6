import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diffsight.errors import InputError, RunError
from diffsight.store.run import Manifest, Run

RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync is quick
MANIFEST = Manifest({"model": {"name": "m", "weights": "ab12"}, "seed": 0}, {"batch_size": 8})
STEPS = 3

# One committing loop for all tests of interruption. Each step depends on the state of the one before, so a lost,
# doubled or torn commit changes every number after it.
LOOP = """
import numpy as np, pyarrow as pa
from diffsight.store.run import Manifest, Run

def work(path, manifest, steps):
    with Run.open(path, manifest) as run:
        assert run.progress.get("step", 0) == run.commits
        for step in range(run.commits, steps):
            old = run.state()["mean"] if run.commits else np.zeros(3)
            mean = np.sin(old + np.arange(3) + step)
            ids = [f"image-{step}-{i}" for i in range(step % 3)]
            run.commit(
                {
                    "errors": pa.table({"id": pa.array(ids, pa.string()).dictionary_encode(), "l2": mean[: len(ids)]}),
                    "predictions": pa.table({"step": [step], "mean": [mean.tolist()]}),
                },
                failures=[{"id": f"bad-{step}", "reason": "truncated \\u00e9"}] if step % 2 else [],
                state={"mean": mean, "alive": np.array([True, False]), "count": np.array(step)},
                progress={"step": step + 1},
            )
        run.finish({"last": float(run.state()["mean"][0])})
"""
exec(LOOP)


def contents(path):
    run = Run.load(path)
    tables = {name: run.read(name).to_pylist() for name in sorted(run.tables)}
    state = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in sorted(run.state().items())}
    return tables, run.failures(), state, run.progress, run.commits, run.metrics()


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != ".lock")


@pytest.fixture
def tmp_path():
    with tempfile.TemporaryDirectory(dir=RAM) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def whole():
    with tempfile.TemporaryDirectory(dir=RAM) as path:
        work(path, MANIFEST, STEPS)
        yield Path(path)


def test_what_was_committed_is_read_back(whole):
    run = Run.load(whole)
    mean, rows = np.zeros(3), []
    for step in range(STEPS):
        mean = np.sin(mean + np.arange(3) + step)
        rows += [{"id": f"image-{step}-{i}", "l2": mean[i]} for i in range(step % 3)]
    assert run.read("errors").to_pylist() == rows
    assert run.read("errors", ["l2"]).column_names == ["l2"]
    assert len({tuple(chunk.dictionary.to_pylist()) for chunk in run.read("errors")["id"].chunks}) == 1
    assert run.rows("errors") == len(rows)
    assert run.rows("nothing") == 0
    assert [failure["id"] for failure in run.failures()] == ["bad-1"]
    assert run.failures()[0]["reason"] == "truncated é"
    state = run.state()
    np.testing.assert_array_equal(state["mean"], mean)
    assert state["alive"].dtype == bool
    assert state["count"].shape == ()
    assert run.metrics() == {"last": mean[0]}
    assert run.manifest == MANIFEST
    assert run.sessions == [{"batch_size": 8}]


def test_only_one_state_is_kept(whole):
    assert [name for name in files(whole) if name.startswith("state")] == ["state/state-00002.safetensors"]


def test_empty_table_keeps_its_columns(tmp_path):
    table = pa.table({"id": pa.array([], pa.string())})
    with Run.open(tmp_path / "a" / "b", MANIFEST) as run:
        run.commit({"predictions": table})
        run.commit({"predictions": table})
        assert run.read("predictions").equals(table)
        assert run.state() == {}
    assert [name for name in files(tmp_path / "a" / "b") if "part" in name] == ["predictions/part-00000.parquet"]


def test_resume_in_smaller_pieces_gives_the_same(whole, tmp_path):
    for steps in range(1, STEPS + 1):
        work(tmp_path, MANIFEST, steps)
    assert contents(tmp_path) == contents(whole)
    assert len(Run.load(tmp_path).sessions) == STEPS


# --- being killed


class Killed(BaseException):
    pass


@pytest.fixture
def disk(monkeypatch):
    """Counts file operations, stops at one of them, and keeps what a disk would hold that lost its power then."""
    real = {name: getattr(os, name) for name in ("replace", "mkdir", "unlink")}
    synced, durable = {}, {}

    class Disk:
        count = 0
        stop_at = -1
        error = Killed

        def reset(self, stop_at):
            self.count, self.stop_at = 0, stop_at
            synced.clear()
            durable.clear()

        def materialise(self, root, path):
            path.mkdir(parents=True)
            for name, data in sorted(durable.items()):
                if root not in Path(name).parents:
                    continue
                file = path / Path(name).relative_to(root)
                file.mkdir(exist_ok=True) if data is None else file.write_bytes(data)

    disk = Disk()

    def step():
        disk.count += 1
        if disk.count - 1 == disk.stop_at:
            raise disk.error()

    def fsync(descriptor):
        step()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            synced[path.stat().st_ino] = path.read_bytes()
            return
        for name in [name for name in durable if Path(name).parent == path and not os.path.lexists(name)]:
            del durable[name]
        for file in path.iterdir():
            durable[str(file)] = None if file.is_dir() else synced.get(file.stat().st_ino, b"never synced")

    def wrap(name):
        def call(*arguments, **options):
            step()
            return real[name](*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, wrap(name))
    return disk


def interrupted_runs(disk, tmp_path, whole, every=1):
    """A fresh directory for each file operation of the loop, left as if the process had ended there."""
    disk.reset(-1)
    work(tmp_path / "count", MANIFEST, STEPS)
    assert contents(tmp_path / "count") == contents(whole)
    operations = disk.count
    assert operations > 40
    for number in range(0, operations, every):
        disk.reset(number)
        path = tmp_path / f"run-{number}"
        try:
            work(path, MANIFEST, STEPS)
        except (Killed, RunError) as error:
            ended = error
        else:
            ended = None  # only old state may stay behind without a word
        disk.stop_at = -1
        yield number, path, ended


def test_killed_or_without_power_at_any_file_operation(disk, tmp_path, whole):
    expected = contents(whole), files(whole)
    for number, path, ended in interrupted_runs(disk, tmp_path, whole):
        assert isinstance(ended, Killed)
        after = tmp_path / f"after-{number}"
        disk.materialise(path, after)
        commits = [Run.load(run).commits if (run / "manifest.json").exists() else 0 for run in (path, after)]
        assert commits[1] in (commits[0], commits[0] - 1)
        for run in (path, after):
            work(run, MANIFEST, STEPS)
            assert (contents(run), files(run)) == expected, number


def test_disk_full_at_any_file_operation(disk, tmp_path, whole):
    disk.error = lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    expected = contents(whole), files(whole)
    for number, path, ended in interrupted_runs(disk, tmp_path, whole, every=3):
        if ended is not None:
            assert isinstance(ended, RunError)
            assert "same command" in str(ended)
            assert "nothing that was committed is lost" in str(ended)
        work(path, MANIFEST, STEPS)
        assert (contents(path), files(path)) == expected, number


def test_full_disk_says_to_make_room(monkeypatch, tmp_path):
    run = Run.open(tmp_path, MANIFEST)
    run.commit({}, progress={"step": 1})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"No space left on device\. Make room on the disk"):
            run.commit({}, progress={"step": 2})
        assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(RunError, match="Open the run again"):
        run.commit({}, progress={"step": 2})
    run.close()
    with Run.open(tmp_path, MANIFEST) as run:
        assert run.progress == {"step": 1}


def test_sigkill_at_random_moments(tmp_path):
    # A fork for each try, so that only the loop itself takes time; new runs until enough of them were really killed.
    script = f"""{LOOP}
import os, random, signal, sys, time
root, steps, manifest = sys.argv[1], int(sys.argv[2]), Manifest({{"seed": 0}})
started = time.perf_counter()
work(root + "/whole", manifest, steps)
one_step = (time.perf_counter() - started) / steps
moments, kills, runs = random.Random(0), 0, 0
while kills < 12:
    child = os.fork()
    if not child:
        work(f"{{root}}/{{runs}}", manifest, steps)
        os._exit(0)
    time.sleep(moments.uniform(0, 4) * one_step)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    kills += status == signal.SIGKILL
    runs += status == 0
work(f"{{root}}/{{runs}}", manifest, steps)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(tmp_path), "10"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    for run in tmp_path.iterdir():
        assert (contents(run), files(run)) == (contents(tmp_path / "whole"), files(tmp_path / "whole"))


def test_worker_of_a_killed_run_does_not_keep_it_locked(tmp_path):
    script = """
import os, signal, sys, time
from diffsight.store.run import Manifest, Run
run = Run.open(sys.argv[1], Manifest({"seed": 0}))
here, there = os.pipe()
worker = os.fork()
if not worker:
    os.write(there, b"forked")
    time.sleep(60)
os.read(here, 6)  # the worker has started, and let go of the lock
print(worker, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        worker = int(process.stdout.readline())
        process.wait()
        try:
            os.kill(worker, 0)
            Run.open(tmp_path, Manifest({"seed": 0})).close()
        finally:
            os.kill(worker, 9)


# --- what is refused


def changed(path, name, change):
    file = path / name
    file.write_bytes(change(file.read_bytes()))


@pytest.fixture
def run_path(tmp_path):
    work(tmp_path / "run", MANIFEST, STEPS)
    return tmp_path / "run"


def test_other_settings_are_listed_with_both_values(run_path):
    other = Manifest({"model": {"name": "m", "weights": "ff99"}, "seed": 0, "prompts": ["a", "b"]})
    before = files(run_path)
    with pytest.raises(RunError) as caught:
        Run.open(run_path, other)
    message = str(caught.value)
    assert 'model.weights: "ab12" in the run, "ff99" asked now' in message
    assert 'prompts[0]: (absent) in the run, "a" asked now' in message
    assert "seed" not in message
    assert "model.name" not in message
    assert files(run_path) == before
    with pytest.raises(RunError, match=r"model\.weights"):
        Run.open(run_path, other, read_only=True)


def test_what_is_only_recorded_may_differ(run_path):
    with Run.open(run_path, Manifest(MANIFEST.fingerprint_fields, {"batch_size": 512})) as run:
        assert run.manifest.recorded == {"batch_size": 8}
        assert [session["batch_size"] for session in run.sessions] == [8, 512]
    assert len(Run.load(run_path).sessions) == 2


def test_one_writer_and_many_readers(run_path):
    with Run.open(run_path, MANIFEST) as run:
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            Run.open(run_path, MANIFEST)
        with pytest.raises(RunError, match="in use"):
            Run.load(run_path, read_only=False)
        assert Run.open(run_path, MANIFEST, read_only=True).commits == STEPS
        run.commit({})
    with Run.load(run_path, read_only=False) as run:
        run.finish({"again": 1})
    reader = Run.load(run_path)
    assert reader.metrics() == {"again": 1}
    for write in (lambda: reader.commit({}), lambda: reader.finish({}), lambda: run.commit({})):
        with pytest.raises(RunError, match="opened for reading, or is closed"):
            write()


def test_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"holds 'thesis\.tex' but no manifest"):
        Run.open(tmp_path, MANIFEST)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file"):
        Run.open(tmp_path / "thesis.tex", MANIFEST)
    with pytest.raises(RunError, match="is not a run"):
        Run.load(tmp_path)
    with Run.open(tmp_path / "clean", MANIFEST):
        pass
    with pytest.raises(RunError, match=r"one of those in it, such as .*clean"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("manifest.json", lambda data: data[:-9], "not JSON"),
        ("manifest.json", lambda data: b"", "not JSON"),
        ("manifest.json", lambda data: b'{"name": "web app"}', "no schema number"),
        ("manifest.json", lambda data: data.replace(b"ab12", b"ab13"), "fingerprint"),
        ("manifest.json", lambda data: data.replace(b'"schema": 1', b'"schema": 2'), "Upgrade diffsight"),
        ("checkpoint.json", lambda data: data[:40], "not JSON"),
        ("checkpoint.json", lambda data: data.replace(b'"step":3', b'"step":5'), "checksum"),
        ("checkpoint.json", lambda data: data.replace(b'"schema":1', b'"schema":9'), "Upgrade diffsight"),
        ("errors/part-00002.parquet", lambda data: data[:-1], "checksum"),
        ("predictions/part-00000.parquet", lambda data: bytes([data[0] ^ 1]) + data[1:], "checksum"),
        ("failures/part-00001.jsonl", lambda data: data + b"\n", "checksum"),
        ("state/state-00002.safetensors", lambda data: b"", "checksum"),
    ],
)
def test_damage_is_refused_and_nothing_is_touched(run_path, name, change, says):
    changed(run_path, name, change)
    before = {name: (run_path / name).read_bytes() for name in files(run_path)}
    with pytest.raises(RunError, match=says) as caught:
        Run.open(run_path, MANIFEST)
    assert name in str(caught.value)
    assert {name: (run_path / name).read_bytes() for name in files(run_path)} == before


def test_missing_files_are_named(run_path):
    (run_path / "errors/part-00001.parquet").unlink()
    with pytest.raises(RunError, match=r"errors/part-00001\.parquet is damaged: it was committed but is not there"):
        Run.open(run_path, MANIFEST)
    with pytest.raises(RunError, match="not there"):
        Run.load(run_path).read("errors")


def test_lost_or_old_checkpoint_does_not_delete_results(run_path):
    before = files(run_path)
    text = (run_path / "checkpoint.json").read_bytes()
    (run_path / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"checkpoint\.json knows only 0 of them"):
        Run.open(run_path, MANIFEST)
    (run_path / "checkpoint.json").write_bytes(text)
    assert files(run_path) == before
    assert contents(run_path)[4] == STEPS


def test_checkpoint_of_another_run_is_refused(run_path, tmp_path):
    work(tmp_path / "other", Manifest({"seed": 1}), 1)
    (run_path / "checkpoint.json").write_bytes((tmp_path / "other/checkpoint.json").read_bytes())
    with pytest.raises(RunError, match=r"another manifest\.json"):
        Run.open(run_path, MANIFEST)


def test_cleaning_spares_what_is_not_ours(run_path):
    mine = ["errors/notes.txt", "errors/part-7.parquet", "plots/part-00000.png", "report.html"]
    ours = [
        "errors/part-00003.parquet",
        "errors/.part-00003.parquet.tmp",
        "state/state-00001.safetensors",
        ".checkpoint.json.tmp",
    ]
    for name in mine + ours:
        (run_path / name).parent.mkdir(exist_ok=True)
        (run_path / name).write_text("x")
    Run.open(run_path, MANIFEST).close()
    assert all((run_path / name).exists() for name in mine)
    assert not any((run_path / name).exists() for name in ours)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tables": {"Errors": pa.table({"a": [1]})}},
        {"tables": {"../errors": pa.table({"a": [1]})}},
        {"tables": {"state": pa.table({"a": [1]})}},
        {"tables": {"errors": pa.table({"id": ["x"]})}},
        {"tables": {}, "failures": [{"reason": object()}]},
        {"tables": {}, "state": {"names": np.array(["x"])}},
        {"tables": {}, "progress": {"loss": float("nan")}},
    ],
)
def test_bad_commit_leaves_the_run_usable(run_path, arguments):
    before = contents(run_path)
    with Run.open(run_path, MANIFEST) as run:
        with pytest.raises(InputError):
            run.commit(**arguments)
        assert contents(run_path) == before
        run.commit({"extra": pa.table({"a": [1]})})
        assert run.read("extra").to_pylist() == [{"a": 1}]


def test_metrics_are_strict_json(run_path):
    with Run.open(run_path, MANIFEST) as run, pytest.raises(InputError, match="metrics"):
        run.finish({"accuracy": float("nan")})
    assert json.loads((run_path / "metrics.json").read_text())["metrics"]


# --- the manifest


def test_fingerprint_sees_values_and_nothing_else():
    assert Manifest({"a": 1, "b": (1, 2)}).fingerprint == Manifest({"b": [1, 2], "a": 1}, {"gpu": 3}).fingerprint
    for other in (
        {"a": 1, "b": [2, 1]},
        {"a": True, "b": [1, 2]},
        {"a": "1", "b": [1, 2]},
        {"a": 1, "b": [1, 2], "c": None},
    ):
        assert Manifest(other).fingerprint != Manifest({"a": 1, "b": [1, 2]}).fingerprint


def test_fingerprint_is_stable_across_versions():
    # SHA-256 of {"a":[1,2.5],"b":"x"}, as the sha256sum tool gives it: a change here orphans everyone's runs.
    expected = "5cefae54a95b31dc660d6cbbb2198f0811fc70ee37b1cc85b1989870cd293ffb"
    assert Manifest({"b": "x", "a": [1, 2.5]}).fingerprint == expected


def test_values_that_are_not_json_are_refused():
    with pytest.raises(InputError, match="fingerprint_fields"):
        Manifest({"grid": np.arange(3)})
    with pytest.raises(InputError, match="recorded"):
        Manifest({}, {"rate": float("inf")})


def test_long_differences_are_shortened(tmp_path):
    Run.open(tmp_path, Manifest({"ids": list(range(1000)), "text": "x" * 5000})).close()
    with pytest.raises(RunError) as caught:
        Run.open(tmp_path, Manifest({"ids": list(range(1, 1001)), "text": "y" * 5000}))
    assert "and 989 more" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("seed", range(3))
def test_differences_are_those_that_were_made(seed):
    rng = random.Random(seed)
    fields = {f"k{i}": {"x": rng.random(), "y": [rng.random(), "z"]} for i in range(5)}
    other = json.loads(json.dumps(fields))
    other["k3"]["y"][0] = -1
    del other["k1"]["x"]
    found = Manifest(fields).differences(Manifest(other))
    assert found == {"k1.x": (json.dumps(fields["k1"]["x"]), None), "k3.y[0]": (json.dumps(fields["k3"]["y"][0]), "-1")}
