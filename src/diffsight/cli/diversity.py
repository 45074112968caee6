"""``diffsight diversity`` and ``diffsight gaussian``: what generated images are like, and Gaussians of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options, output
from diffsight.cli.label_scorers import SELF
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.evaluation.embedding import Embedder

AGREEMENT_DRAWS = 20

SetFolder = Annotated[
    Path, typer.Argument(metavar="SET", help="A directory of 'diffsight synthesize', or a folder of class folders.")
]
FeatureModel = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="MODEL",
        help="Whose features: a diffusion model, or timm:NAME (default: the model that drew the set).",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Part of the real data (default: the task's own).")]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where features are kept (default: $DIFFSIGHT_CACHE, then ~/.cache/diffsight/features)."
    ),
]


def diversity(
    folder: SetFolder,
    *,
    real: Annotated[
        str | None,
        typer.Option(
            metavar="TASK|SOURCE",
            help="Compare with real images, as an oracle: a task, a folder, torchvision:NAME (default: none).",
        ),
    ] = None,
    features: FeatureModel = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            metavar="self|MODEL",
            help="Count the images that this takes for their class: the model that drew them, or another diffusion "
            "model (default: no count).",
        ),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Images of each class (default: of the smallest class).")
    ] = None,
    root: Root = None,
    split: Split = None,
    cache: Cache = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Chooses the images.")] = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """Say how diverse a set of images is, and with --real, as an oracle, how near to real ones.

    Compare sets at the same --per-class and with the same --features only.
    """
    with output.interruptible("Features so far are kept; the same command goes on from there."):
        from diffsight.evaluation import synthetic

        images, generator = synthetic.open_set(folder)
        compared = None if real is None else synthetic.open_real(real, root=root, split=split)
        embedder = _embedder(features or generator, cache, batch_size, device, dtype)
        classifier = None
        if agreement is not None:
            from diffsight.zero_shot.classifier import DiffusionClassifier

            judge = options.load_model(_judge(agreement, generator), device, dtype)
            policy = options.make_policy(None, AGREEMENT_DRAWS)
            rows = options.batch_rows(judge, batch_size)
            classifier = DiffusionClassifier(judge, list(images.class_names), policy=policy, batch_size=rows).fit()
        with output.stages() as told:
            found = synthetic.report(
                images,
                embedder,
                real=compared,
                classifier=classifier,
                per_class=per_class,
                seed=seed,
                progress=told,
            )
    if as_json:
        output.show_json(found)
    else:
        _show(found)
    return 3 if found["failed"] else 0


def gaussian(
    folder: SetFolder,
    *,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="A task of 'diffsight ls tasks', a YAML file, or a folder with one sub-folder per class.",
        ),
    ],
    features: FeatureModel = None,
    covariance: Annotated[str, typer.Option(metavar="KIND", help="shared by all classes, or per-class.")] = "shared",
    shrinkage: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="S", help="Of the covariance (default: by Ledoit and Wolf's formula)."),
    ] = None,
    root: Root = None,
    split: Split = None,
    limit: options.Limit = None,
    cache: Cache = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """Classify a task's images by a Gaussian for each class on features of generated ones (GDC); nothing is trained."""
    with output.interruptible("Features so far are kept; the same command goes on from there."):
        from diffsight.evaluation.gaussian import evaluate_gaussian
        from diffsight.evaluation.synthetic import open_set
        from diffsight.evaluation.task import load_task
        from diffsight.synthesis.gaussian import GaussianClassifier

        chosen = load_task(task)
        chosen = chosen if split is None else replace(chosen, split=split)
        images, generator = open_set(folder)
        embedder = _embedder(features or generator, cache, batch_size, device, dtype)
        with output.stages() as told:
            metrics = evaluate_gaussian(
                images,
                chosen,
                embedder,
                classifier=GaussianClassifier(covariance=covariance, shrinkage=shrinkage),
                limit=limit,
                root=root,
                progress=told,
            )
    name = (features or generator or "").strip()
    note = options.honesty(name, chosen.name)
    if as_json:
        output.show_json({**metrics, "note": note})
        return 3 if metrics["failures"] else 0
    output.show(f"{chosen.name} with {metrics['references']['images']:,} generated images of {metrics['set']}")
    output.show_metrics(metrics)
    for line in (f"Protocol: {metrics['label']}.", note):
        if line is not None:
            output.show(line)
    return 3 if metrics["failures"] else 0


def _embedder(
    name: str | None, cache: Path | None, batch_size: int | None, device: str | None, dtype: str | None
) -> "Embedder":
    from diffsight.evaluation.embedding import TIMM, diffusion_embedder, timm_embedder

    if name is None:
        raise InputError("Which model drew these images is not known: say whose features by --features MODEL.")
    if name.startswith(TIMM):
        return timm_embedder(name, device=device)
    backbone = options.load_model(name, device, dtype)
    return diffusion_embedder(backbone, cache=cache, batch_size=options.batch_rows(backbone, batch_size))


def _judge(name: str, generator: str | None) -> str:
    if name != SELF:
        return name
    if generator is None:
        raise InputError("Which model drew these images is not known: name another one, --agreement MODEL.")
    return generator


def _show(found: Mapping[str, Any]) -> None:
    kind = "generated" if found["synthetic"] else "not known to be generated"
    output.show(f"{found['set']} ({kind}), features of {found['features']} ({found['dimensions']:,} numbers)")
    agreed = {} if found["agreement"] is None else {e["name"]: e["value"] for e in found["agreement"]["classes"]}
    rows = [["class", "images", "Vendi", "cosine", *(["agreement"] if agreed else [])]]
    for one in found["classes"]:
        share = agreed.get(one["name"])
        rows.append([*_alone(one["name"], one), *(["" if share is None else f"{share:.1%}"] if agreed else [])])
    overall = [f"{found['agreement']['value']['value']:.1%}"] if found["agreement"] is not None else []
    rows.append([*_alone("all", found["pooled"]), *overall])
    output.show(output.table(rows, align="<>>>>"))
    output.show(found["note"])
    if found["agreement"] is not None:
        counted = found["agreement"]
        output.show(f"Agreement: with {counted['classifier']} as zero-shot classifier, {counted['calls']:,} calls.")
    if found["oracle"] is not None:
        _show_oracle(found["oracle"])
    for one in found["failed"]:
        output.show(f"failed: {one['id']}: {one['reason']}")


def _show_oracle(found: Mapping[str, Any]) -> None:
    output.show(f"\nORACLE, against {found['real']} ({found['label'].partition(': ')[2]}):")
    rows = [["class", "images", "FID", "KID", "precision", "recall", "density", "coverage", "real Vendi"]]
    for name, one in (*((each["name"], each) for each in found["classes"] or ()), ("all", found)):
        fid = f"{one['fid']:.2f}" if "fid" in one else ""
        shares = [f"{one[key]:.3f}" for key in ("precision", "recall", "density", "coverage")]
        kid = f"{one['kid']['value']:.4g}"
        rows.append([name, f"{one['images']:,}", fid, kid, *shares, f"{one['real_alone']['vendi']:.2f}"])
    output.show(output.table(rows, align="<>>>>>>>>"))


def _alone(name: str, values: Mapping[str, Any]) -> list[str]:
    return [name, f"{values['images']:,}", f"{values['vendi']:.2f}", f"{values['cosine']:.3f}"]
