"""How to repeat a campaign: its command, its configuration, the seed, versions and digests that say it is the same."""

from collections.abc import Mapping
from typing import Any

from torchfault.report.answers import cost
from torchfault.report.charts import Facts
from torchfault.report.section import Section
from torchfault.results import Results
from torchfault.text import file_name, visible

__all__ = ["repeat"]


def repeat(results: Results) -> Section:
    """Return the command that repeats a campaign, what it took, and by what to tell that it is the same."""
    record, name = results.record, file_name(results.name)
    settings = record.configuration.get("settings")
    if settings is None:
        said = [
            "This campaign was begun from Python: run the same program again. Its trials are the same where what is "
            "described below is; torchfault refuses to resume another one."
        ]
        files = [(f"{name}.json", _json({k: v for k, v in record.configuration.items() if _short(v)}))]
    else:
        command = f"torchfault {settings.get('recipe', 'run')} {name}.yaml --store {name}.db"
        said = [f"Save the configuration below as {name}.yaml, and run"]
        files = [("", command), (f"{name}.yaml", _yaml(settings))]
    return Section("Cost, and how to repeat it", [cost(results), *said], charts=[_facts(results)], files=files)


def _facts(results: Results) -> Facts:
    record = results.record
    rows = [
        ("campaign", record.name),
        ("begun", record.created),
        ("status", f"{record.status}: {record.reason}" if record.reason else record.status),
        ("seed", str(record.seed)),
        ("model, SHA-256", record.model),
        ("data, SHA-256", record.data),
        ("faults, SHA-256", results.space.digest()),
        *record.versions.items(),
    ]
    shown = tuple((name, visible(value)) for name, value in rows if value)
    return Facts("What makes it the same campaign", ("what", "value"), shown, (False, False))


def _short(value: Any) -> bool:
    return len(str(value)) < 2000


def _json(plain: Mapping[str, Any]) -> str:
    import json

    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def _yaml(settings: Mapping[str, Any]) -> str:
    """Return stored settings as a configuration file: what is nothing is left out, and what other recipes take."""
    import yaml

    others = {"search", "vulnerability", "ra"} - {settings.get("recipe")}
    held = {key: value for key, value in _held(settings).items() if key not in others}
    return yaml.safe_dump(held, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _held(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _held(item) for key, item in value.items() if item not in (None, [], {})}
    return [_held(item) for item in value] if isinstance(value, list) else value
