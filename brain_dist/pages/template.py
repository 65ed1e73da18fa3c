"""Templates of self-contained HTML pages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jinja2

from brain_dist.pages.text import display_name, interval_text, listing, number, percent


def page_template(name: str) -> jinja2.Template:
    """The template at ``name``, a path in this package. Values are escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (display_name, interval_text, listing, number, percent)
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {"thousands": "{:,}".format, "json": partial(json.dumps, indent=1)}
    environment.globals |= {"number": number, "percent": percent}  # as arguments of interval_text
    return environment.get_template(name)
