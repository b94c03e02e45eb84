"""The SVG canvas of the figures: text stays text, colours come from the page's CSS variables, so they follow its theme."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from markupsafe import Markup


def fixed(value: float) -> str:
    """A coordinate: one decimal is enough, and keeps files small and equal from run to run."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _points(*corners: tuple[float, float]) -> str:
    return " ".join(f"{fixed(x)},{fixed(y)}" for x, y in corners)


class Canvas:
    """Collects shapes; every text that goes in is escaped here and nowhere else."""

    def __init__(self, width: float, font: float) -> None:
        self.width, self.height, self.font = width, 0.0, font
        self._parts: list[str] = []

    def _add(self, tag: str, css: str, title: str = "", **values: float | str) -> None:
        attributes = "".join(
            f' {name.replace("_", "-")}="{fixed(v) if isinstance(v, (int, float)) else escape(v)}"'
            for name, v in values.items()
        )
        inner = f"<title>{escape(title)}</title></{tag}>" if title else f"</{tag}>"
        self._parts.append(f'<{tag} class="{css}"{attributes}>{inner}')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, title: str = "") -> None:
        self._add("line", css, title, x1=x1, y1=y1, x2=x2, y2=y2)

    def dot(self, x: float, y: float, radius: float, css: str, title: str = "") -> None:
        self._add("circle", css, title, cx=x, cy=y, r=radius)

    def rect(self, x: float, y: float, width: float, height: float, css: str, title: str = "", **more: float) -> None:
        self._add("rect", css, title, x=x, y=y, width=width, height=height, **more)

    def polyline(self, points: list[tuple[float, float]], css: str) -> None:
        self._add("polyline", css, points=_points(*points))

    def heat(
        self, x: float, y: float, pitch: float, row: float, css: str, strength: float, title: str, figure: str = ""
    ) -> None:
        """A cell of a grid whose colour is as strong as its value, 0 to 1, with the value in figures where given."""
        inset = 1.0 if pitch >= 8 else 0.0
        opacity = f"{0.05 + 0.90 * min(max(strength, 0.0), 1.0):.2f}"
        wide, css = max(pitch - inset, 0.5), f"{css} figured" if figure else css
        self._add("rect", css, title, x=x + inset / 2, y=y + 0.5, width=wide, height=row - 1, fill_opacity=opacity)
        if figure:
            self.text(x + pitch / 2, y + row / 2 + self.font * 0.35, figure, "cell", anchor="middle")

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start", title: str = "") -> None:
        full = f"<title>{escape(title)}</title>" if title and title != words else ""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text class="{css or "tick"}" x="{fixed(x)}" y="{fixed(y)}" font-size="{fixed(self.font)}"{side}>'
            f"{full}{escape(words)}</text>"
        )

    def marker(self, kind: str, x: float, y: float, title: str = "") -> None:
        """Shape and fill both tell the kind, so that colour is never the only sign."""
        if kind in ("dense", "ticket"):
            self.rect(x - 4.25, y - 4.25, 8.5, 8.5, f"mark {kind}", title)
        elif kind == "quantized":
            self.dot(x, y, 5.0, "mark quantized", title)
        else:
            css = "mark both" if kind == "pruned+quantized" else "mark pruned"
            self._add("polygon", css, title, points=_points((x, y - 5.75), (x + 5.5, y + 4), (x - 5.5, y + 4)))

    def diamond(self, x: float, y: float, r: float, css: str) -> None:
        self._add("polygon", css, points=_points((x, y - r), (x + r, y), (x, y + r), (x - r, y)))

    def arrow(self, x: float, y: float, up: bool, css: str) -> None:
        """A value beyond the edge of the plot lies this way."""
        tip, foot = (y - 11, y - 6) if up else (y + 11, y + 6)
        corners = _points((x - 3.5, foot), (x, tip), (x + 3.5, foot))
        self._add("path", css, d="M" + corners.replace(" ", "L"))

    def svg(self, key: str, title: str, description: str) -> Markup:
        """The finished figure, with words for those who cannot see it."""
        return Markup(
            f'<svg class="figure {key}" role="img" aria-labelledby="{key}-t" aria-describedby="{key}-d" '
            f'viewBox="0 0 {fixed(self.width)} {fixed(self.height)}">'
            f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
            + "".join(self._parts)
            + "</svg>"
        )


def swatch(paint: Callable[[Canvas], None]) -> Markup:
    """Some shapes alone, 14 by 14, for legends and tables."""
    canvas = Canvas(14, 10)
    paint(canvas)
    return Markup(f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{"".join(canvas._parts)}</svg>')


def sample(kind: str) -> Markup:
    """The marker of a kind of model."""
    return swatch(lambda canvas: canvas.marker(kind, 7, 7.5))


def square(css: str) -> Markup:
    """For the rows of a table whose bars have this colour."""
    return swatch(lambda canvas: canvas.rect(2, 2.5, 10, 9, f"bar {css}", rx=1.5))
