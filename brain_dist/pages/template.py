"""Templates of self-contained HTML pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.pages.text import display_name, listing, number, percent

if TYPE_CHECKING:
    import jinja2


def page_template(name: str) -> jinja2.Template:
    """The template at ``name``, a path in this package. Values are escaped, and a missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "listing": listing,
        "display_name": display_name,
        "thousands": "{:,}".format,
        "json": lambda value: json.dumps(value, indent=1),
    }
    return environment.get_template(name)
