"""The report as one HTML page that needs nothing else: no request leaves it.

Kernels' texts and agents' words are somebody else's. Jinja2 escapes all of them, and should one
get through, the page's own policy lets no script run but ours and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..report import ratio
from .plots import SHAPES, progress, strip
from .roofline import roofline
from .story import MEANING, Story
from .words import duration, us, visible

HERE = Path(__file__).parent
DIFF_KINDS = {"+": "added", "-": "removed", "@": "place"}


def html(story: Story) -> str:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ratio=ratio, duration=duration, us=us)
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        story=story,
        shapes=SHAPES,
        progress=progress,
        strip=strip,
        roofline=roofline,
        meaning=MEANING,
        diff_lines=diff_lines,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
    )


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """Each line of a diff from its first hunk on, with what kind it is."""
    _, at, hunks = diff.partition("\n@@")
    lines = (at + hunks).strip("\n").split("\n") if at else diff.split("\n")
    return [(DIFF_KINDS.get(line[:1], "same"), line) for line in lines]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
