"""The template of the HTML pages that are saved."""

from __future__ import annotations

import html
from pathlib import Path

STATIC = Path(__file__).parent / "widgets" / "static"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body class="nofe-page">
<main class="nofe nofe-look {kind}">{body}</main>
<script type="module">
{code}
</script>
</body>
</html>
"""


def html_page(title: str, body: str, kind: str = "", code: str = "") -> str:
    """A page without links to other files.

    body: HTML.  kind: a class of CSS of its own.  code: JavaScript.
    """
    css = "".join((STATIC / name).read_text("utf-8") for name in ("style.css", "page.css"))
    return _PAGE.format(title=html.escape(title), css=css, kind=kind, body=body, code=code)
