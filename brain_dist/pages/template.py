"""HTML pages from templates, self-contained and escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.pages.text import number, percent

if TYPE_CHECKING:
    import jinja2


def page_template(name: str) -> jinja2.Template:
    """A page of this package; whatever is put into it is escaped, and a value that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "json": lambda v: json.dumps(v, indent=1)}
    return environment.get_template(name)


def display_name(name: str) -> str:
    """A class or dataset name for reading: "notumor" → "no tumour"."""
    return "no tumour" if name == "notumor" else name.replace("_", " ")
