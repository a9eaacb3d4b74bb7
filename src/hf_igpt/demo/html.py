"""Pictures and messages as HTML: every text escaped, every picture with words for those who can't see it."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image


# Gradio reads an HTML component's text as a template: braces and dollars of a class name must not be code.
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})

STYLE = """
.igpt-figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 12px; margin: 4px 0; }
.igpt-figures figure { margin: 0; flex: 0 1 auto; max-width: 100%; }
.igpt-figures img { display: block; image-rendering: pixelated; width: var(--igpt-side, 144px); height: auto;
  max-width: 100%; border: 1px solid var(--border-color-primary); }
.igpt-figures.middle { --igpt-side: 112px; }
.igpt-figures.small { --igpt-side: 72px; }
.igpt-figures.small figure { max-width: 74px; }
.igpt-figures.wide img { image-rendering: auto; width: 100%; max-width: 640px; }
.igpt-figures figcaption { font-size: 0.85em; max-width: max(var(--igpt-side, 144px), 72px);
  overflow-wrap: anywhere; margin-top: 2px; }
.igpt-figures button { padding: 0; line-height: 0; flex: none; border: 2px solid transparent; border-radius: 4px;
  background: none; cursor: pointer; }
.igpt-figures button:hover, .igpt-figures button:focus-visible { border-color: var(--color-accent); outline: none; }
.igpt-message { margin: 4px 0; }
.igpt-message[role=alert] { border-left: 4px solid #c62828; padding: 6px 10px; background: #c6282818;
  overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """
    An image on the page.

    Args:
        alternative: what it shows, for those who can't see it.
        caption: below it; empty for none.
    """

    image: Image.Image
    alternative: str
    caption: str = ""


def escaped(text: str) -> str:
    """A text that shows as it is, whatever it holds."""
    return html.escape(text, quote=True).translate(_TEMPLATE)


def figures(pictures: Sequence[Picture], kind: str = "") -> str:
    """
    Pictures side by side, as many in a row as fit.

    Args:
        kind: "small", "middle", or "wide" for figures as wide as the page; by default pictures of 144 pixels.
    """
    return f'<div class="igpt-figures {kind}">{"".join(map(_figure, pictures))}</div>'


def buttons(pictures: Sequence[Picture]) -> str:
    """Small pictures that can be pressed, each with its number in `data-number`."""
    parts = [
        f'<button type="button" data-number="{number}" title="{escaped(picture.caption)}">{_img(picture)}</button>'
        for number, picture in enumerate(pictures)
    ]
    return f'<div class="igpt-figures small">{"".join(parts)}</div>'


def message(text: str) -> str:
    """A line that a screen reader says when it changes."""
    return f'<p class="igpt-message" role="status">{escaped(text)}</p>'


def problem(text: str) -> str:
    """What went wrong and what to do."""
    return f'<p class="igpt-message" role="alert">{escaped(text)}</p>'


def _figure(picture: Picture) -> str:
    caption = f"<figcaption>{escaped(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{_img(picture)}{caption}</figure>"


def _img(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.image.save(buffer, format="PNG")
    # In the page and not in a file, so that there is no address at which another user could find it.
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{source}" alt="{escaped(picture.alternative)}">'
