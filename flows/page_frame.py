"""The frame of a page that needs no network: style, plots and scripts are all inside it.

Its content security policy forbids the browser to fetch anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def page_file(name: str) -> str:
    """Return a file that pages are made with."""
    return resources.files("flows").joinpath(name).read_text(encoding="utf-8")


def framed(title: str, command: str, body: str, figures: Mapping[str, Any], *, plotly: str, script: str) -> str:
    """Return the page of a command.

    Parameters
    ----------
    title, command
        Of what, and of which command: ``nimble estimate``.
    body
        HTML of what is shown.
    figures
        Plotly's figures, which ``script`` finds as JSON in the element ``figures``.
    plotly
        Plotly's script, which runs before it.
    """
    # A "<" only ever stands inside a JSON string, where it may be written so; "</script>" thus cannot occur.
    data = json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: {escape(command)}</title>
<style>
{page_file("page.css")}</style>
</head>
<body>
<main>
{body}
</main>
<noscript><p>The plots need JavaScript; it is part of this file.</p></noscript>
<script>{plotly}</script>
<script type="application/json" id="figures">{data}</script>
<script>
{script}</script>
</body>
</html>
"""
