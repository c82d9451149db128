"""What drawings are made of: shapes with a CSS class, collected on a canvas. No markup."""

from __future__ import annotations

from dataclasses import dataclass, field

CHAR_PX = 6.7
SMALL_CHAR_PX = 6.1


@dataclass(frozen=True)
class Shape:
    """One SVG element: kind is rect, text, path (d) or circle (w is its radius)."""

    kind: str
    css: str
    x: float = 0.0
    y: float = 0.0
    w: float = 0.0
    h: float = 0.0
    text: str = ""
    href: str = ""
    d: str = ""


@dataclass(frozen=True)
class Drawing:
    """A finished drawing: what the SVG template writes down."""

    width: int
    height: int
    css: str
    title: str
    description: str
    shapes: tuple[Shape, ...]
    axis: tuple[tuple[float, int], ...] = ()
    """(x, tick) of the corners of the axis, so that a click anywhere finds its tick."""
    whole: tuple[tuple[float, int], ...] = ()
    """The same of the whole run, by which zooming and panning go; empty if that is shown."""
    behind: tuple[Shape, ...] = ()
    """The first of the shapes, if they are those of many drawings: no cursor changes them."""


@dataclass
class Canvas:
    """Collects shapes; knows the plot's edges."""

    x0: float
    x1: float
    narrow: bool
    keep: str = ""
    """Query string of the links."""
    shapes: list[Shape] = field(default_factory=list)

    def rect(
        self, x: float, y: float, w: float, h: float, css: str, text: str = "", href: str = ""
    ) -> None:
        """Add a rectangle with a tooltip and a link."""
        self.shapes.append(
            Shape("rect", css, round(x, 1), round(y, 1), round(max(w, 0.6), 1), h, text, href)
        )

    def text(self, x: float, y: float, css: str, text: str) -> None:
        """Add a word."""
        self.shapes.append(Shape("text", css, round(x, 1), round(y, 1), text=text))

    def path(self, d: str, css: str, text: str = "") -> None:
        """Add a path with a tooltip."""
        self.shapes.append(Shape("path", css, text=text, d=d))

    def line(self, xa: float, ya: float, xb: float, yb: float, css: str) -> None:
        """Add a straight line."""
        self.path(f"M{xa:.1f} {ya:.1f}L{xb:.1f} {yb:.1f}", css)

    def disc(self, x: float, y: float, r: float, css: str, text: str = "") -> None:
        """Add a circle with a tooltip."""
        self.shapes.append(Shape("circle", css, round(x, 1), round(y, 1), r, text=text))

    def name(self, y: float, text: str, css: str = "e") -> None:
        """Write a lane's name left of the plot."""
        self.text(self.x0 - (5 if self.narrow else 10), y, css, text)
