"""An exploration as one HTML page that needs no network: a plot of all cores and their front for each pattern.

The page is made of the JSON object of ``nimble explore`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from flows.figures import FONT, INK, MUTED, RULE
from flows.page_frame import framed
from quant.atomic_file import write_text

#: Parameters that are shown of a core: name, and what a person calls it.
PARAMETERS = {
    "rows": "rows",
    "columns": "columns",
    "lanes": "lanes",
    "window": "window",
    "drain_chains": "chains",
    "weight_tiles": "weight tiles",
    "slice_bytes": "slice bytes",
    "act_words": "act words",
}

_SCRIPT = """"use strict";
Object.values(JSON.parse(document.getElementById("figures").textContent)).forEach((figure, number) =>
  Plotly.newPlot(`plot${number}`, figure.data, figure.layout, { displaylogo: false, responsive: true }));
"""

_BEATEN, _FRONT = "#9fb2cc", "#28519f"


def write_exploration_page(document: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of an exploration's JSON object.

    Raises
    ------
    OSError
        The file cannot be written; it is then as it was.
    """
    from plotly.offline import get_plotlyjs

    write_text(path, exploration_page(document, get_plotlyjs()))


def exploration_page(document: Mapping[str, Any], plotly: str) -> str:
    """Return the page with a given script as Plotly."""
    plots = list(_plots(document))
    figures = {name: front_figure(document, *name.split(" ")) for name in plots}
    parameters, counts = document["parameters"], document["counts"]
    memory, model = parameters["memory"], document["area_model"]
    settings = [
        ("Grid", f"{counts['grid']:,} cores", f"around {parameters['base']}"),
        ("Priced", f"{counts['priced']:,} cores", _left_out(counts)),
        ("Budget", f"{parameters['luts']:,} LUTs", f"{parameters['dsp']} DSP, {parameters['bram']} block RAMs"),
        ("Clock", f"{parameters['clock_mhz']:g} MHz", parameters["clock_source"]),
        ("Memory", memory["name"], f"{memory['bandwidth_gb_s']:g} GB/s, {memory['latency_ns']:g} ns"),
        ("Tokens", f"{parameters['prefill']:,} + {parameters['decode']:,}", "of the prompt, and after it"),
        (
            "Area model",
            f"{100 * model['median_error']:.1f} % off (median)",
            f"at most {100 * model['worst_error']:.1f} %, on {model['points']} cores left out of the fit",
        ),
    ]
    head = "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="more">{escape(more)}</dd></div>'
        for name, value, more in settings
    )
    sections = "".join(_section(document, number, *name.split(" ")) for number, name in enumerate(plots))
    words = "".join(f"<li>{escape(sentence)}</li>" for sentence in document["assumptions"])
    title = f"Cores for {document['model']}"
    body = f"""<header><h1>{escape(title)}</h1><p>LUTs by a model, tokens per second by nimble estimate</p></header>
<dl class="settings">{head}</dl>
{sections}
<section><h2>What the figures rest on</h2><ul>{words}</ul></section>
<footer>Written by <code>nimble explore --html</code>.</footer>"""
    return framed(title, "nimble explore", body, figures, plotly=plotly, script=_SCRIPT)


def _plots(document: Mapping[str, Any]) -> Iterator[str]:
    """Pattern and objective of each plot."""
    for pattern, fronts in document["fronts"].items():
        for objective in fronts:
            yield f"{pattern} {objective}"


def _left_out(counts: Mapping[str, int]) -> str:
    return (
        f"{counts['invalid']:,} are not possible, {counts['over_luts']:,} have too many LUTs, "
        f"{counts['over_bram']:,} too many block RAMs, {counts['unable']:,} do not run the model"
    )


def front_figure(document: Mapping[str, Any], pattern: str, objective: str) -> dict[str, Any]:
    """Plotly figure of all cores and their front: LUTs across, tokens a second upward."""
    cores, front = document["cores"], document["fronts"][pattern][objective]
    on_front = set(front)
    rest = [number for number in range(len(cores)) if number not in on_front]
    traces = [
        _points(document, rest, pattern, objective, "beaten", {"color": _BEATEN, "size": 7}, "markers"),
        _points(document, front, pattern, objective, "front", {"color": _FRONT, "size": 9}, "lines+markers"),
    ]
    axis = {"gridcolor": RULE, "linecolor": MUTED, "rangemode": "tozero", "automargin": True}
    return {
        "data": traces,
        "layout": {
            "height": 460,
            "margin": {"l": 60, "r": 12, "t": 12, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 13, "color": INK},
            "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": MUTED, "font": {"color": INK}, "align": "left"},
            "legend": {"orientation": "h", "y": 1.06},
            "xaxis": {**axis, "title": {"text": "LUTs (ECP5, modelled)"}},
            "yaxis": {**axis, "title": {"text": f"{objective} tokens/s"}},
        },
    }


def _points(
    document: Mapping[str, Any],
    numbers: list[int],
    pattern: str,
    objective: str,
    name: str,
    marker: Mapping[str, Any],
    mode: str,
) -> dict[str, Any]:
    cores = [document["cores"][number] for number in numbers]
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [core["area"]["lut"] for core in cores],
        "y": [core["speeds"][pattern][objective]["tokens_per_second"] for core in cores],
        # Between two cores of the front, the smaller one is all that fits.
        "line": {"shape": "hv", "color": marker["color"], "width": 1.5},
        "marker": marker,
        "text": [_core_text(core, pattern, objective) for core in cores],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _core_text(core: Mapping[str, Any], pattern: str, objective: str) -> str:
    found = core["speeds"][pattern][objective]
    area = core["area"]
    named = "<br>".join(f"{title} {core['parameters'][name]:,}" for name, title in PARAMETERS.items())
    patterns = escape(", ".join(core["parameters"]["patterns"]), quote=False)
    return (
        f"<b>{found['tokens_per_second']:,.3f} tokens/s</b>, bound by {found['bound']}<br>{found['cycles']:,} cycles"
        f"<br>{area['lut']:,} LUTs, {area['dsp']} DSP, {area['bram']} block RAMs<br>{named}<br>made for {patterns}"
    )


def _section(document: Mapping[str, Any], number: int, pattern: str, objective: str) -> str:
    front = document["fronts"][pattern][objective]
    heads = ["LUTs", "DSP", "block RAMs", *PARAMETERS.values(), "made for", "tokens/s", "cycles"]
    rows = []
    for index in front:
        core = document["cores"][index]
        found = core["speeds"][pattern][objective]
        values = [
            *(f"{core['area'][kind]:,}" for kind in ("lut", "dsp", "bram")),
            *(f"{core['parameters'][name]:,}" for name in PARAMETERS),
            escape(", ".join(core["parameters"]["patterns"])),
            f"{found['tokens_per_second']:,.3f}",
            f"{found['cycles']:,}",
        ]
        rows.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return (
        f'<section><h2>{escape(pattern)}, {escape(objective)}</h2><p class="note">No core of the front has another '
        f'one that is both smaller and faster.</p><div class="panel"><div id="plot{number}"></div></div>'
        f'<div class="panel scroll wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div></section>\n"
    )
