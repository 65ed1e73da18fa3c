"""The configuration reference: ``python -m brain_dist.config.reference > docs/configuration.md`` (``make docs``)."""

from __future__ import annotations

import json
from typing import Any

from docstring_parser import parse

from brain_dist.config.config import Config
from brain_dist.config.parse import to_dict

INTRODUCTION = """\
<!-- made by `make docs` from the docstrings in brain_dist/config/; edit those -->

# Configuration

Each setting is a key of a YAML file and a flag of the command line:

```
brain-dist train --config configs/convnext_base.yaml --optim.lr 1e-4
```

Later files and flags override earlier ones. A run saves all its settings in `config.yaml` in its folder."""


def reference() -> str:
    """Markdown with a table per section: setting, default, meaning."""
    config = Config()
    sections = [_section(name, type(getattr(config, name)), defaults) for name, defaults in to_dict(config).items()]
    return "\n\n".join([INTRODUCTION, *sections]) + "\n"


def meanings(section: type) -> dict[str, str]:
    """Setting → its description in the docstring of a section's dataclass."""
    return {item.arg_name: " ".join((item.description or "").split()) for item in parse(section.__doc__ or "").params}


def _section(name: str, section: type, defaults: dict[str, Any]) -> str:
    meaning = {setting: text.replace("|", r"\|") for setting, text in meanings(section).items()}
    rows = [f"| `{name}.{setting}` | {_default(value)} | {meaning[setting]} |" for setting, value in defaults.items()]
    summary = (section.__doc__ or "").split("\n\n")[0]
    return "\n".join([f"## {name}", "", summary, "", "| setting | default | meaning |", "|---|---|---|", *rows])


def _default(value: Any) -> str:
    if value is None or value == "":
        return "not set"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
