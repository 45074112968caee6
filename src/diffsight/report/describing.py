"""What a run is: task, model, method, protocol, versions; and what has to be said beside its numbers."""

import json
from collections.abc import Mapping
from typing import Any

from diffsight.backbones.cards import honesty
from diffsight.diffusion.weighting import BY_NAME
from diffsight.report.blocks import Facts, Text
from diffsight.report.numbers import NOTHING, plural
from diffsight.report.reading import Reading

_LONGEST = 160


def protocol(reading: Reading) -> str:
    """What was allowed to be learnt from: how the numbers are to be called."""
    metrics, fields = reading.metrics or {}, reading.fields
    for said in (fields.get("protocol"), metrics.get("label"), reading.session.get("label")):
        if isinstance(said, str) and said:
            return said
    settings = fields.get("settings", {})
    if fields.get("adapter") is not None:
        return "few-shot: an adapter was learnt from labelled examples"
    weighting = settings.get("weighting", "uniform")
    if not isinstance(weighting, str) or weighting not in BY_NAME:
        return f"not zero-shot as far as can be told: timestep weights {_short(weighting)}"
    if reading.kind == "recognition" and "settings" not in fields:
        return "not stated in the run"
    return "zero-shot: no image was used to choose anything"


def warnings(reading: Reading) -> list[Text]:
    """What a reader has to know before the numbers."""
    found, metrics = [], reading.metrics or {}
    noun = "image" if reading.kind == "recognition" else "query"
    if not reading.finished:
        found.append(
            f"Unfinished: {reading.done:,} of {plural(reading.total, noun, 'queries' if noun == 'query' else '')} are "
            "done. The numbers are of these, and are not those of the whole task. The same command continues the run."
        )
    if metrics.get("learnt"):
        found.append("The network was trained on these very images: this measures memory.")
    if metrics.get("invalid"):
        found.append(f"These results are {metrics['invalid']}.")
    if said := honesty(reading.model):
        found.append(said)
    return [Text(text, "warning") for text in found]


def facts(reading: Reading) -> Facts:
    """What the numbers depend on, and where they were made."""
    fields, session = reading.fields, reading.session
    task, settings = fields["task"], fields.get("settings", {})
    pairs = [("task", f"{task['name']}, version {task.get('version', '?')}")]
    if data := fields.get("data"):
        pairs.append(("data", f"{data['source']}, {plural(int(data['images']), 'image')}"))
    if queries := fields.get("queries"):
        pairs.append(("queries", f"{queries['count']:,}"))
    pairs.append(("model", reading.model))
    pairs += [(f"model: {key}", _short(value)) for key, value in _plain(_identity(fields)).items()]
    pairs.append(("protocol", protocol(reading)))
    pairs += [(key.replace("_", " "), _short(value)) for key, value in settings.items()]
    if prompts := fields.get("prompts"):
        pairs.append(("prompts", f"{len(prompts):,}, the first: “{_short(prompts[0])}”"))
    for key in ("device", "batch_size"):
        if key in session:
            pairs.append((key.replace("_", " "), _short(session[key])))
    started = [str(one.get("started", "?")).replace("T", " ").replace("+00:00", " UTC") for one in reading.run.sessions]
    pairs.append(("started", started[0]))
    if len(started) > 1:
        pairs.append(("continued", f"{plural(len(started) - 1, 'time')}, last {started[-1]}"))
    versions = session.get("versions", {})
    pairs.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    pairs.append(("Python", _short(session.get("python", "?"))))
    if command := session.get("command"):
        pairs.append(("command", " ".join(map(str, command))))
    pairs.append(("run", str(reading.run.path)))
    pairs.append(("fingerprint", reading.run.manifest.fingerprint))
    return Facts(pairs)


def method(reading: Reading) -> str:
    """In a few words: the policy of a diffusion model, the score of a matcher, or the kind of another model."""
    settings = reading.fields.get("settings", {})
    for key in ("policy", "score"):
        if isinstance(part := settings.get(key), Mapping) and part.get("name"):
            return str(part["name"])
    return str(reading.fields.get("kind", "")) or protocol(reading).partition(":")[0]


def _identity(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    found = fields.get("backbone", fields.get("model", {}))
    return found if isinstance(found, Mapping) else {"name": found}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What fits on a line."""
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str | int | float | bool | Mapping) and value != ""
    }


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        name, rest = value.get("name"), {key: item for key, item in value.items() if key != "name"}
        inner = ", ".join(f"{key.replace('_', ' ')} {_short(item)}" for key, item in rest.items())
        text = f"{name} ({inner})" if name and inner else str(name or inner)
    elif value is None:
        text = NOTHING
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
