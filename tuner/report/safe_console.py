"""A console that prints no control characters of others."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tuner.core.text import is_readable, printable_lines


class SafeConsole(Console):
    """A console that escapes control characters in any text, however it is rendered.

    Markup and emoji codes in strings are not interpreted.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield printable segments, and the console's own movements of the cursor."""
        for segment in super().render(renderable, options):
            if segment.control or is_readable(segment.text):
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)
