"""Text for cards: whatever a run wrote into its results shows as text and never as markup."""

import re
from collections.abc import Iterable, Sequence


# Markup in the middle of a line; what would begin a heading, a list or a quote; and addresses, which become links.
_SPECIAL = re.compile(r"([\\`*_{}\[\]|<>~&]|^[#+=-]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_LISTED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def plain_line(value: object) -> str:
    """A value on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in str(value)).split())


def escaped(value: object) -> str:
    """A value as Markdown that shows it letter by letter: no markup, no HTML, no links."""
    return _LISTED.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", plain_line(value)))


def code(value: object) -> str:
    """
    A value as a code span, whatever backticks it has. A pipe would end a table's cell in a code span too, so there it
    is written as a character reference outside of one.
    """
    text = plain_line(value)
    if not text:
        return ""
    if "|" in text:
        return f"<code>{_as_html(text)}</code>"
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    padding = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def single_gaps(text: str) -> str:
    """A rendered template without the gaps that its left-out parts leave."""
    return re.sub(r"\n{3,}", "\n\n", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *lines]) if lines else ""


def _as_html(text: str) -> str:
    return "".join(f"&#{ord(c)};" if not c.isalnum() and c != " " else c for c in text)
