"""``diffsight ls``: what there is, by name."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from diffsight.cli import options, output


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    tasks = "tasks"
    matching = "matching"
    policies = "policies"
    presets = "presets"
    probes = "probes"
    networks = "networks"
    tricks = "tricks"


# What the table shows; JSON has more.
COLUMNS = {
    Kind.models: ("name", "parameters", "licence", "description"),
    Kind.tasks: ("name", "classes", "metric", "source", "licence", "description"),
    Kind.matching: ("name", "queries", "licence", "description"),
    Kind.policies: ("name", "default", "most calls", "description"),
    Kind.presets: ("name", "policy", "loss", "weighting", "template", "source"),
    Kind.probes: ("name", "layers", "timesteps", "grid", "head", "ImageNet top-1", "source"),
    Kind.networks: ("name", "family", "paper", "stem up to 64 pixels"),
    Kind.tricks: ("name", "description"),
}


def ls(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    *,
    as_json: options.Json = False,
) -> int:
    """List models, tasks, policies, presets of classification or probes, networks, or tricks of synthetic sets."""
    lists = {
        Kind.models: models,
        Kind.tasks: tasks,
        Kind.matching: matching,
        Kind.policies: policies,
        Kind.presets: presets,
        Kind.probes: probes,
        Kind.networks: networks,
        Kind.tricks: tricks,
    }
    entries = lists[kind]()
    if as_json:
        output.show_json(entries)
    else:
        columns = COLUMNS[kind]
        output.show(output.table([columns, *([str(entry[key]) for key in columns] for entry in entries)]))
        if kind is Kind.policies:
            output.show("Most calls: of an image with ten classes and one prompt for each, if no class can be dropped.")
        if kind is Kind.networks:
            output.show("All of timm's networks can be trained, too, by timm's names.")
    return 0


def models() -> list[dict[str, Any]]:
    """Known models: name, size, licence, where they are."""
    from diffsight.backbones import cards

    return [
        {
            "name": card.name,
            "parameters": card.parameters,
            "licence": card.licence,
            "where": card.repo or card.checkpoint or "in this package",
            "description": card.description,
            "reads": [] if card.reads == "nothing" else [card.reads],
        }
        for card in cards().values()
    ]


def tasks() -> list[dict[str, Any]]:
    """Tasks of the package: classes, metric, licence of the data, where it comes from."""
    from diffsight.evaluation.task import list_tasks, load_task

    return [
        {
            "name": task.name,
            "classes": len(task.class_names) if task.class_names else "of the data",
            "version": task.version,
            "metric": task.metric,
            "protocol": task.protocol,
            "licence": task.licence,
            "source": task.source,
            "split": task.split,
            "description": task.citation,
            "templates": list(task.templates),
            "presets": {name: list(templates) for name, templates in task.presets.items()},
        }
        for task in map(load_task, list_tasks())
    ]


def matching() -> list[dict[str, Any]]:
    """Matching tasks: what they choose among, licence of the data, and how a local copy has to look."""
    from diffsight.data.compositional import BENCHMARKS
    from diffsight.evaluation.match_tasks import BINDING

    made = [
        {
            "name": name,
            "queries": "1,000 of each test",
            "licence": "rendered by diffsight",
            "description": description,
            "citation": "after Clark & Jaini, arXiv:2303.15233, Table 3",
            "layout": "",
        }
        for name, description in BINDING.items()
    ]
    published = [
        {
            "name": known.name,
            "queries": "of the local copy",
            "licence": known.licence,
            "description": known.description,
            "citation": known.citation,
            "layout": known.layout,
        }
        for known in BENCHMARKS.values()
    ]
    return made + published


def policies() -> list[dict[str, Any]]:
    """Policies: the most calls for ten classes with their defaults, and what they do."""
    from diffsight.scoring.policies import POLICIES
    from diffsight.zero_shot.settings import Settings

    default = Settings().policy.name
    return [
        {
            "name": name,
            "default": "yes" if name == default else "",
            "most calls": policy().max_calls(10),
            "description": (policy.__doc__ or "").splitlines()[0],
            "settings": policy().to_dict(),
        }
        for name, policy in POLICIES.items()
    ]


def presets() -> list[dict[str, Any]]:
    """Papers' settings: policy, loss, weighting and prompt."""
    from diffsight.zero_shot.settings import LI2023, preset

    names = ["clark2023", "li2023", *(f"li2023/{name}" for name in sorted(LI2023))]
    return [
        {
            "name": name,
            "policy": paper.settings.policy.name,
            "loss": paper.settings.loss,
            "weighting": paper.settings.weighting,
            "source": paper.source,
            "template": paper.template,
            "settings": paper.settings.to_dict(),
        }
        for name, paper in ((name, preset(name)) for name in names)
    ]


def probes() -> list[dict[str, Any]]:
    """Papers' features and heads, with what the papers report."""
    from diffsight.features.presets import PRESETS

    return [
        {
            "name": name,
            "layers": ", ".join(paper.layers),
            "timesteps": ", ".join(map(str, paper.timesteps)),
            "grid": paper.size,
            "head": paper.head.name,
            "ImageNet top-1": f"{paper.published} %",
            "source": paper.source,
            "views": paper.views,
            "recipe": paper.recipe,
            "settings": paper.head.to_dict(),
        }
        for name, paper in PRESETS.items()
    ]


def networks() -> list[dict[str, Any]]:
    """Networks to train, with what their first layers are for small images."""
    from diffsight.synthesis.networks import NETWORKS, STEMS

    return [
        {
            "name": name,
            "family": known.family,
            "paper": "arXiv:2302.03298" if known.paper else "",
            "stem up to 64 pixels": STEMS[known.family].format(patch="4 for 32 pixels" if known.family == "vit" else 2),
        }
        for name, known in NETWORKS.items()
    ]


def tricks() -> list[dict[str, Any]]:
    """Tricks of synthetic training sets: what is said of a class, and with how much guidance."""
    from diffsight.synthesis.bag import TRICKS

    return [{"name": name, "description": description} for name, description in TRICKS.items()]
