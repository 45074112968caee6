"""Speed of zero-shot classification, as ratios within one run.

    python benchmarks/zero_shot.py [--table runs/exhaustive] [--images 100]

(a) The whole scoring loop against the bare UNet forward at its best batch.
(b) Calls per image of every policy at what accuracy, replayed on the stored errors of an exhaustive run, with Li et
    al.'s CIFAR-10 schedule as the baseline; and how calls grow with the number of classes.
(c) Requests of many images in one batch against one image at a time, for the default policy, in wall time.

Without ``--table`` an exhaustive run is made first (continued if interrupted). Nothing here is a claim about zero-shot
skill: the model saw training photographs of these classes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from diffsight.backbones import load
from diffsight.backbones.encoding import encode_images
from diffsight.diffusion.weighting import by_name
from diffsight.evaluation.rescoring import StoredErrors, read_errors
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import load_task
from diffsight.scoring.elimination import Exhaustive, Policy, Staged
from diffsight.scoring.policies import replay
from diffsight.scoring.racing import Forecast, PairedTTest, PooledRace, Race
from diffsight.store.run import Run
from diffsight.zero_shot.settings import Settings, prepare

BASELINE = Staged(keep=(5, 1), samples=(50, 500), paper_exact=True)


def say(text: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bare_rate(backbone, condition, batch: int, *, seconds: float = 3.0) -> float:  # noqa: ANN001
    """Calls per second of the UNet's forward alone."""
    x_t = torch.randn(batch, *backbone.latent_shape, dtype=backbone.dtype, device=backbone.device)
    timestep = torch.randint(0, 1000, (batch,), device=backbone.device)
    states = condition.take(torch.arange(batch) % len(condition)).tensors["encoder_hidden_states"]
    with torch.no_grad():
        backbone.unet(x_t, timestep, encoder_hidden_states=states)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            backbone.unet(x_t, timestep, encoder_hidden_states=states)
            count += batch
        return count / (time.perf_counter() - started)


def loop_rate(job, batch_size: int, images: int) -> float:  # noqa: ANN001
    """Calls per second of everything: decoding, encoding, noise, packing, policy, UNet."""
    openers = [(sample.id, sample.load) for sample in job.source.select(range(images))]
    engine = job.setup.engine(batch_size)
    started = time.perf_counter()
    for _ in engine.run(encode_images(job.setup.backbone, openers)):
        pass
    return engine.calls / (time.perf_counter() - started)


def one_at_a_time(job, batch_size: int, images: int) -> tuple[float, int]:  # noqa: ANN001
    """Seconds for the images one after the other, each with an engine of its own; and the calls made."""
    started, calls = time.perf_counter(), 0
    for sample in job.source.select(range(images)):
        engine = job.setup.engine(batch_size)
        for _ in engine.run(encode_images(job.setup.backbone, [(sample.id, sample.load)])):
            pass
        calls += engine.calls
    return time.perf_counter() - started, calls


def weighted_tables(stored: StoredErrors, run: Run, weighting: str, loss: str) -> list[np.ndarray]:
    """The errors that a policy sees, one table per image."""
    schedule = load("tiny-fashion", device="cpu").schedule
    policy = run.manifest.fingerprint_fields["settings"]["policy"]
    levels = Exhaustive(num_draws=policy["num_draws"], spacing=policy["spacing"]).grid(len(schedule))
    weights = by_name(weighting, schedule).to("eps", schedule).values[levels].numpy()
    column = stored.losses.index(loss)
    return [table[:, :, column].astype(np.float64) * (weights / weights.mean())[:, None] for table in stored.tables]


def accuracy_and_calls(policy: Policy, tables: list[np.ndarray], labels: np.ndarray) -> tuple[float, float]:
    """Share of right answers, a tie being none, and mean calls per image."""
    results = [replay(policy, table) for table in tables]
    right = [bool(r.alive[label]) and r.alive.sum() == 1 for r, label in zip(results, labels, strict=True)]
    return float(np.mean(right)), float(np.mean([r.calls for r in results]))


def with_classes(tables: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Tables of ``count`` classes: each image's own ten, and rivals drawn from the losers of all images.

    A rival is a whole series of paired differences to the winner of the image that it comes from. So the simulated
    classes are as hard as the stored ones, no two of them are alike by more than chance.
    """
    winners = [table.mean(axis=0).argmin() for table in tables]
    losers = [np.delete(t - t[:, [w]], w, axis=1) for t, w in zip(tables, winners, strict=True)]
    pool = np.concatenate(losers, axis=1)
    grown = []
    for table, winner in zip(tables, winners, strict=True):
        extra = pool[:, rng.integers(pool.shape[1], size=count - table.shape[1])]
        grown.append(np.concatenate([table, table[:, [winner]] + extra], axis=1))
    return grown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("runs/bench-exhaustive"))
    parser.add_argument("--images", type=int, default=100, help="of the exhaustive run, if it has to be made")
    parser.add_argument("--timed-images", type=int, default=40, help="for (a) and (c)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    args = parser.parse_args()
    backbone, task = load("tiny-fashion"), load_task("fashion-mnist")
    report: dict[str, object] = {"device": str(backbone.device), "threads": torch.get_num_threads()}

    say("(a) scoring loop against the bare UNet forward")
    job = make_job(task, backbone, limit=args.timed_images)
    condition = job.setup.scorer.condition
    batch = max((32, 64, 128, 256), key=lambda size: bare_rate(backbone, condition, size))
    dense = make_job(task, backbone, limit=args.timed_images, settings=Settings(policy=Exhaustive(num_draws=20)))
    pairs = [
        (bare_rate(backbone, condition, batch, seconds=6.0), loop_rate(dense, batch, args.timed_images))
        for _ in range(5)
    ]
    # In turns and by medians: this machine's speed moves by more than what is measured.
    bare, loop = (float(np.median(rates)) for rates in zip(*pairs, strict=True))
    say(f"    bare {bare:.0f} calls/s at batch {batch}; loop {loop:.0f} calls/s; ratio {loop / bare:.3f}")
    report["a"] = {"bare": bare, "batch": batch, "loop": loop, "ratio": loop / bare}

    say("(c) packing requests of many images against one image at a time, default policy")
    apart, calls = one_at_a_time(job, batch, args.timed_images)
    together = calls / loop_rate(job, batch, args.timed_images)
    say(f"    {args.timed_images} images: {apart:.1f} s apart, {together:.1f} s together; {apart / together:.2f} times")
    report["c"] = {"apart": apart, "together": together, "ratio": apart / together}

    say("(b) policies replayed on stored errors")
    if not (args.table / "manifest.json").exists():
        say(f"    first an exhaustive run of {args.images} images × 100 draws × 10 classes into {args.table}")
    if args.table == Path("runs/bench-exhaustive"):
        evaluate(make_job(task, backbone, limit=args.images, settings=Settings(policy=Exhaustive())), args.table)
    run = Run.load(args.table)
    stored = read_errors(run, len(run.manifest.fingerprint_fields["owner"]))
    labels = np.array(stored.labels)
    tables = weighted_tables(stored, run, Settings().weighting, Settings().loss)
    draws = len(tables[0])
    baseline = prepare(backbone, job.setup.prompts, Settings(policy=BASELINE)).settings.policy.max_calls(10)
    policies: dict[str, Policy] = {
        "exhaustive": Exhaustive(num_draws=draws),
        "staged, nested 5→1": Staged(keep=(5, 1), samples=(10, draws)),
        "t-test (Clark & Jaini's cutoff)": PairedTTest(max_draws=draws, spacing="nested"),
        "race": Race(max_draws=draws),
        "pooled race": PooledRace(max_draws=draws),
        "forecast, the default": Settings().policy,
        "forecast with 100 draws at most": Forecast(max_draws=draws),
    }
    say(
        f"    {len(tables)} images; baseline: Li et al.'s CIFAR-10 schedule, {baseline} calls per image by construction"
    )
    rows = {}
    for name, policy in policies.items():
        share, mean = accuracy_and_calls(policy, tables, labels)
        rows[name] = {"accuracy": share, "calls": mean, "of_baseline": mean / baseline}
        say(f"    {name:<34} top-1 {100 * share:5.1f} %   {mean:7.1f} calls per image   1/{baseline / mean:.1f}")
    report["b"] = rows
    growth = {}
    rng = np.random.default_rng(0)
    say("    calls per image of the default policy as the classes grow (simulated from the stored losers)")
    for count in (10, 30, 100, 300, 1000):
        kept = tables if count == 10 else with_classes(tables[:200], count, rng)
        results = [replay(Settings().policy, table) for table in kept]
        answers = [table[: Settings().policy.max_draws].mean(axis=0).argmin() for table in kept]
        share = float(np.mean([result.alive[answer] for result, answer in zip(results, answers, strict=True)]))
        mean = float(np.mean([result.calls for result in results]))
        growth[count] = {"calls": mean, "per_class": mean / count, "agrees_with_all_draws": share}
        say(
            f"    {count:5d} classes {mean:8.1f} calls, {mean / count:5.2f} per class; "
            f"answer of all draws kept for {share:.1%} of images"
        )
    report["growth"] = growth
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
