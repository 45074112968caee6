"""Methods that see no label of the task: the diffusion model, baselines, and what is learnt from generated images."""

from collections.abc import Sequence
from pathlib import Path

from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.prompts import PromptSet
from diffsight.errors import InputError
from diffsight.evaluation import runner
from diffsight.evaluation.baselines import kind_of, load_baseline
from diffsight.evaluation.comparing.answers import write_answers
from diffsight.evaluation.comparing.measuring import flops_of_call, flops_of_recogniser
from diffsight.evaluation.comparing.rows import Entry
from diffsight.evaluation.comparing.work import Found, Work
from diffsight.evaluation.recognisers import Recogniser
from diffsight.evaluation.runner import Job
from diffsight.evaluation.trained import TrainedJob, evaluate_trained
from diffsight.synthesis import trainer
from diffsight.synthesis.gaussian import GaussianClassifier
from diffsight.synthesis.training_set import TrainingSet, match_classes, of_synthetic
from diffsight.zero_shot.settings import prepare


def scoring_job(work: Work) -> Job:
    """The zero-shot classifier on the question's images."""
    backbone, question = work.model(), work.question
    refuse_unconditional(backbone)
    templates = "{}" if backbone.class_names is not None else question.task.templates
    prompts = PromptSet.from_templates(question.classes, templates)
    setup = prepare(backbone, prompts, work.settings.scoring)
    return Job(task=question.task, source=question.test, setup=setup)


def by_diffusion(work: Work, entry: Entry) -> Found:
    """Zero-shot by denoising error."""
    job, out = scoring_job(work), work.folder(entry) / "run"
    told = work.tell("images, zero-shot", len(job.source))
    metrics = runner.evaluate(
        job, out, batch_size=work.batch_size, progress=lambda state: told(state.images, state.calls)
    )
    calls = metrics["calls"]["mean"]
    call, encoding = flops_of_call(work.model())
    return Found(
        runs=[out],
        metrics=[metrics],
        said="zero-shot: no image was used to choose anything",
        model=work.model().name,
        calls=calls,
        seconds=metrics["speed"]["seconds_per_image"],
        flops=None if call is None else calls * call + (encoding or 0.0),
    )


def by_baseline(work: Work, entry: Entry) -> Found:
    """CLIP, SigLIP or a supervised network as it is."""
    question, name = work.question, entry.baseline
    if name is None:
        raise InputError(f"The method {entry.method.name} needs a baseline.")
    model = load_baseline(name, question.classes, question.task.templates, device=work.device, dtype=work.dtype)
    out = work.folder(entry) / "run"
    return measured(work, [model], [out], kind=kind_of(model), name=name)


def by_synthetic(work: Work, entry: Entry) -> Found:
    """A network trained on generated images."""
    made = work.synthetic()
    model = work.model().name
    trained = train(work, entry, of_synthetic(made), protocol="zero-shot", seeds=work.settings.seeds)
    outs = [work.folder(entry) / f"seed-{seed}" for seed in work.seeds()]
    found = measured(work, trained, outs, kind="trained network", name=f"{entry.method.name} of {model}")
    spent = work.watch.spent("synthesize") + work.watch.spent(entry.key)
    return Found(
        runs=found.runs,
        metrics=found.metrics,
        said=found.said,
        model=model,
        seconds=found.seconds,
        flops=found.flops,
        once={"calls": float(work.plan().calls), "seconds": spent},
    )


def by_gaussians(work: Work, entry: Entry) -> Found:
    """GDC: Gaussians on features of generated images."""
    made, embedder, question = work.synthetic(), work.embedder(entry), work.question
    source = made.source()
    with work.watch.running(entry.key):
        references = work.embedded(embedder, source, "generated images, features")
        model = GaussianClassifier().fit(references.values, made.labels[references.positions])
    if len(model.classes_) < len(question.classes):
        raise InputError("Of a class no generated image can be used.")
    test = work.embedded(embedder, question.test, "test images, features")
    order = match_classes(question.classes, made.classes, of="The generated set")
    scores = model.decision_function(test.values)[:, order]
    said = f"zero-shot: Gaussians on features of generated images (GDC, {model.covariance} covariance)"
    out = work.folder(entry) / "run"
    seconds, flops = work.cost(embedder)
    metrics = write_answers(
        out,
        question,
        test,
        model.predict_proba(test.values)[:, order],
        ties=(scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1,
        kind="gdc",
        model=work.model().name,
        said=said,
        calls=embedder.calls_per_image,
        seconds=seconds,
        device=work.model().device,
        depends={"features": embedder.identity(), "set": {"ids": source.fingerprint(), "images": len(source)}},
    )
    spent = work.watch.spent("synthesize") + work.watch.spent(entry.key)
    return Found(
        runs=[out],
        metrics=[metrics],
        said=said,
        model=work.model().name,
        calls=float(embedder.calls_per_image),
        seconds=metrics["speed"]["seconds_per_image"],
        flops=flops,
        once={"calls": float(work.plan().calls + len(source) * embedder.calls_per_image), "seconds": spent},
    )


def train(
    work: Work, entry: Entry, images: TrainingSet, *, protocol: str, seeds: int = 1, seed: int | None = None
) -> Sequence[Recogniser]:
    """Train networks in the row's folder, continuing what is there."""
    first = work.settings.seed if seed is None else seed
    with work.watch.running(entry.key):
        return trainer.train(
            images,
            work.folder(entry) / ("network" if seed is None else f"network-{seed}"),
            settings=work.settings.training,
            protocol=protocol,
            seeds=seeds,
            seed=first,
            device=work.device,
            progress=lambda state: work.progress(state.what, state.done, state.total, 0) if work.progress else None,
        ).classifiers


def measured(work: Work, models: Sequence[Recogniser], outs: Sequence[Path], *, kind: str, name: str) -> Found:
    """Networks on the question's images, each in a run of its own."""
    question, metrics = work.question, []
    for model, out in zip(models, outs, strict=True):
        order = match_classes(question.classes, model.class_names, of="The network")
        job = TrainedJob(
            task=question.task,
            source=question.test,
            model=model,
            classes=question.classes,
            order=tuple(order),
            kind=kind,
            name=name,
        )
        told = work.tell("images recognised", len(question.test))
        metrics.append(evaluate_trained(job, out, progress=lambda done, total, told=told: told(done, 0)))
    return Found(
        runs=list(outs),
        metrics=metrics,
        said=models[0].label,
        model=name,
        seconds=metrics[0]["speed"]["seconds_per_image"],
        flops=flops_of_recogniser(models[0]),
    )
