"""HTML pages from Jinja2 templates; every value is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render_html(template: Path, **values: Any) -> str:
    """Render a template, which may include its neighbours. A name that `values` lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)
