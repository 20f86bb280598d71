"""A report's Markdown as one HTML file that needs nothing else: pictures inside, no scripts, links or network.

The text may be hostile (a language model wrote part of it), so raw HTML and links are off in the parser, and only
pictures of the report's own folder are shown. Knows nothing about what the report says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_LINE_BREAK = "<br>"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }
th { background: #f3f3f3; } img { max-width: 100%; } blockquote { border-left: 4px solid #ccc; padding-left: 1em; }
"""


def page(markdown: str, title: str, figures: Path) -> str:
    """The Markdown as a page. A picture `figures/NAME.png` becomes the SVG of the same name in the folder `figures`.

    Raises `FileNotFoundError` where there is none.
    """

    def image(alt: str, name: str) -> str:
        data = base64.b64encode((figures / f"{name}.svg").read_bytes()).decode()
        return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'

    return document(title, rendered(markdown, image))


def rendered(markdown: str, image: Callable[[str, str], str]) -> str:
    """The Markdown as the content of a page. `image` makes a picture's HTML from its text and its name."""
    parser = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    parser.disable(["link", "autolink", "reference"])
    parser.inline.ruler.push("line_break", _line_break)

    def picture(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return image(tokens[index].content, Path(str(tokens[index].attrs["src"])).stem)

    parser.add_render_rule("image", picture)
    return parser.render(markdown)


def document(title: str, body: str, policy: str = _POLICY, head: str = "") -> str:
    """A whole page. `policy`: what the browser may load or run; `head`: HTML that goes there."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{head}</head>\n<body>\n"
        f"{body}</body>\n</html>\n"
    )


def _line_break(state: StateInline, silent: bool) -> bool:
    """The one tag that `markdown.cell` writes itself; a foreign one has its `<` escaped and does not get here."""
    if not state.src.startswith(_LINE_BREAK, state.pos):
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos += len(_LINE_BREAK)
    return True
