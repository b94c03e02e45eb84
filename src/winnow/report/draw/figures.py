"""The SVG canvas of the figures: text stays text, colours come from the page's CSS variables, so they follow its theme."""

from __future__ import annotations

from html import escape

from markupsafe import Markup


def fixed(value: float) -> str:
    """A coordinate: one decimal is enough, and keeps files small and equal from run to run."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


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
        self._add("polyline", css, points=" ".join(f"{fixed(x)},{fixed(y)}" for x, y in points))

    def heat(self, x: float, y: float, width: float, height: float, css: str, strength: float, title: str) -> None:
        """A cell whose colour is as strong as its value, 0 to 1."""
        opacity = f"{0.05 + 0.90 * min(max(strength, 0.0), 1.0):.2f}"
        self._add("rect", css, title, x=x, y=y, width=width, height=height, fill_opacity=opacity)

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start", title: str = "") -> None:
        full = f"<title>{escape(title)}</title>" if title and title != words else ""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text class="{css or "tick"}" x="{fixed(x)}" y="{fixed(y)}" font-size="{fixed(self.font)}"{side}>'
            f"{full}{escape(words)}</text>"
        )

    def marker(self, kind: str, x: float, y: float, radius: float, title: str) -> None:
        """Shape and fill both tell the kind, so that colour is never the only sign."""
        r = radius
        if kind == "dense":
            self.rect(x - r * 0.85, y - r * 0.85, 1.7 * r, 1.7 * r, "mark dense", title)
        elif kind == "ticket":
            self.rect(x - r * 0.85, y - r * 0.85, 1.7 * r, 1.7 * r, "mark ticket", title)
        elif kind == "quantized":
            self._add("circle", "mark quantized", title, cx=x, cy=y, r=r)
        else:
            css = "mark both" if kind == "pruned+quantized" else "mark pruned"
            points = f"{fixed(x)},{fixed(y - r * 1.15)} {fixed(x + r * 1.1)},{fixed(y + r * 0.8)} "
            self._add("polygon", css, title, points=points + f"{fixed(x - r * 1.1)},{fixed(y + r * 0.8)}")

    def diamond(self, x: float, y: float, radius: float, css: str) -> None:
        corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
        self._add("polygon", css, points=" ".join(f"{fixed(a)},{fixed(b)}" for a, b in corners))

    def ring(self, x: float, y: float, radius: float) -> None:
        self.dot(x, y, radius, "ring")

    def arrow(self, x: float, y: float, up: bool, css: str) -> None:
        """A value beyond the edge of the plot lies this way."""
        tip, foot = (y - 11, y - 6) if up else (y + 11, y + 6)
        self._add(
            "path", css, d=f"M{fixed(x - 3.5)},{fixed(foot)}L{fixed(x)},{fixed(tip)}L{fixed(x + 3.5)},{fixed(foot)}"
        )

    def svg(self, key: str, title: str, description: str) -> Markup:
        """The finished figure, with words for those who cannot see it."""
        return Markup(
            f'<svg class="figure {key}" role="img" aria-labelledby="{key}-t" aria-describedby="{key}-d" '
            f'viewBox="0 0 {fixed(self.width)} {fixed(self.height)}">'
            f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
            + "".join(self._parts)
            + "</svg>"
        )

    def swatch(self) -> Markup:
        """The shapes alone, 14 by 14, for legends and tables."""
        return Markup(f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{"".join(self._parts)}</svg>')


def sample(kind: str) -> Markup:
    """A marker alone, for legends and tables."""
    canvas = Canvas(14, 10)
    canvas.marker(kind, 7, 7.5, 5, "")
    return canvas.swatch()


def swatch(css: str) -> Markup:
    """A small filled square, for the rows of a table whose bars have this colour."""
    canvas = Canvas(14, 10)
    canvas.rect(2, 2.5, 10, 9, f"bar {css}", rx=1.5)
    return canvas.swatch()
