"""The report on a run, for those who have to believe its numbers: Markdown and one HTML page."""

from .html import html
from .markdown import markdown
from .story import of

__all__ = ["html", "markdown", "of"]
