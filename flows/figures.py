"""Plotly figures of an estimate's page: roofline, cycles by cause, and the patterns side by side.

Each function takes the JSON object of ``nimble estimate`` or a part of it and returns a figure as Plotly's JSON.
Plotly reads text as HTML of its own, so names are escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Colours of the causes. A test holds each pair apart for the three kinds of colour blindness.
CAUSE_COLOURS = {
    "busy": "#28519f",
    "wait_acts": "#d05fc6",
    "wait_weights": "#e8a42c",
    "wait_write": "#9f1f17",
    "wait_drain": "#369a6f",
    "idle": "#b4c0ca",
    "write_back": "#2e2548",
}

#: Marker and colour of a layer on the roofline by its role; on the host the marker is hollow.
ROLE_MARKERS = {
    "linear": ("circle", "#28519f"),
    "head": ("diamond", "#9f1f17"),
    "attention": ("square", "#369a6f"),
}

INK, MUTED, RULE = "#1b2430", "#56606e", "#dfe4ea"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

#: Pixels from one bar to the next, of which the name above it takes about half.
_ROW = 46
_LONGEST_NAME = 34


def layers_of(pattern: Mapping[str, Any], phase: str) -> list[dict[str, Any]]:
    """Layers of a phase in their order."""
    return [layer for layer in pattern["layers"] if layer["phase"] == phase]


def intensity(layer: Mapping[str, Any]) -> float:
    """Useful multiply-accumulates for each byte that memory moves."""
    return float(layer["macs"] / (layer["calls"] * layer["bytes"]))


def attained(layer: Mapping[str, Any]) -> float:
    """Useful multiply-accumulates a second, in 10⁹."""
    return float(layer["macs"] / layer["seconds"] / 1e9)


def peak(document: Mapping[str, Any]) -> float:
    """Multiply-accumulates a second of all multipliers, in 10⁹."""
    return float(document["multipliers"] * document["clock_mhz"] / 1e3)


def rows_peak(layers: Sequence[Mapping[str, Any]]) -> float | None:
    """What the lanes of the rows at work can do of the blocks' linear layers, in 10⁹ a second; None without any."""
    chosen = [layer for layer in layers if layer["role"] == "linear" and layer["where"] == "core"]
    seconds = sum(layer["seconds"] * layer["lane_use"] for layer in chosen)
    return sum(layer["macs"] for layer in chosen) / seconds / 1e9 if seconds else None


def roofline(document: Mapping[str, Any], pattern: Mapping[str, Any], phase: str) -> dict[str, Any]:
    """Each layer of a phase by its useful MACs a byte and a second, under the limits of memory and lanes.

    The page puts labels to points and limits, for which it needs pixels; `meta` of the layout holds their texts.
    """
    import plotly.graph_objects as go

    layers = layers_of(pattern, phase)
    bandwidth, ceiling = document["memory"]["bandwidth_gb_s"], peak(document)
    at_work = rows_peak(layers)
    ridge = ceiling / bandwidth
    across = [intensity(layer) for layer in layers]
    upward = [attained(layer) for layer in layers]
    left, right = min([ridge, *across]) / 2.5, max([ridge, *across]) * 4
    bottom = min([bandwidth * left, ceiling / 2, *upward]) / 1.8
    top = max([ceiling, *upward]) * 2.2
    figure = go.Figure()
    beyond = max(upward) > ceiling  # on the host, which has no ceiling here
    if beyond:
        figure.add_scatter(
            x=[ridge, right], y=[ceiling, bandwidth * right], mode="lines", hoverinfo="skip",
            line={"color": MUTED, "width": 1.5, "dash": "dot"},
        )  # fmt: skip
    figure.add_scatter(
        x=[left, ridge, right], y=[bandwidth * left, ceiling, ceiling], mode="lines", hoverinfo="skip",
        line={"color": INK, "width": 2},
    )  # fmt: skip
    limits = [
        {"text": f"memory {_number(bandwidth)} GB/s", "line": [[left, bandwidth * left], [ridge, ceiling]]},
        {"text": f"all lanes {_number(ceiling)} GMAC/s", "line": [[ridge, ceiling], [right, ceiling]]},
    ]
    if at_work is not None and at_work < 0.98 * ceiling:
        line = [[at_work / bandwidth, at_work], [right, at_work]]
        figure.add_scatter(
            x=[x for x, _ in line], y=[y for _, y in line], mode="lines", hoverinfo="skip",
            line={"color": MUTED, "width": 1.5, "dash": "dash"},
        )  # fmt: skip
        limits.append({"text": f"rows at work {_number(at_work)} GMAC/s", "line": line})
    for role, (symbol, colour) in ROLE_MARKERS.items():
        for where, suffix in (("core", ""), ("host", "-open")):
            chosen = [n for n, layer in enumerate(layers) if (layer["role"], layer["where"]) == (role, where)]
            if chosen:
                figure.add_scatter(
                    x=[across[n] for n in chosen],
                    y=[upward[n] for n in chosen],
                    mode="markers",
                    marker={
                        "symbol": symbol + suffix,
                        "color": colour,
                        "size": 11,
                        "line": {"color": colour if suffix else "#ffffff", "width": 2 if suffix else 1},
                    },
                    text=[_point_text(n, layers[n]) for n in chosen],
                    hovertemplate="%{text}<extra></extra>",
                    name="layers",
                )
    _style(figure, height=430, margin={"l": 54, "r": 12, "t": 12, "b": 48})
    axis = {"type": "log", "fixedrange": True, "gridcolor": RULE, "zeroline": False, "ticks": "", "showline": False,
            "title_font_size": 13}  # fmt: skip
    figure.update_xaxes(**axis, title_text="useful MACs per byte", **_decades(left, right))
    figure.update_yaxes(
        **axis, title_text="GMAC/s attained", title_standoff=8, automargin=True, **_decades(bottom, top)
    )
    figure.update_layout(
        meta={
            "points": [
                {"x": x, "y": y, "number": str(n + 1), "name": f"{n + 1} {_short(layer['name'])}"}
                for n, (x, y, layer) in enumerate(zip(across, upward, layers, strict=True))
            ],
            "limits": limits,
            "beyond": [[ridge, ceiling], [right, bandwidth * right]] if beyond else [],
        }
    )
    return dict(figure.to_dict())


def causes(pattern: Mapping[str, Any], phase: str, *, share: bool) -> dict[str, Any] | None:
    """One bar for each layer on the core, its cycles by cause: all calls, or as shares of the layer's own.

    Returns
    -------
    The figure; None when no layer of the phase is on the core.
    """
    import plotly.graph_objects as go

    numbered = [(n, layer) for n, layer in enumerate(layers_of(pattern, phase), 1) if sum(layer["counters"].values())]
    if not numbered:
        return None
    totals = [sum(layer["counters"].values()) for _, layer in numbered]
    figure = go.Figure()
    for cause, colour in CAUSE_COLOURS.items():
        cycles = [layer["counters"].get(cause, 0) for _, layer in numbered]
        shares = [part / total for part, total in zip(cycles, totals, strict=True)]
        figure.add_bar(
            x=shares if share else cycles,
            y=[row + 0.17 for row in range(len(numbered))],
            orientation="h",
            width=0.42,
            name=cause,
            marker={"color": colour, "line": {"color": "#ffffff", "width": 0.5}},
            text=[
                f"<b>{_short(layer['name'])}</b><br>{cause}: {part:,} cycles, {part_share:.2%}"
                for (_, layer), part, part_share in zip(numbered, cycles, shares, strict=True)
            ],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    values = [
        f"busy {layer['counters']['busy'] / total:.1%}" if share else _large(total)
        for (_, layer), total in zip(numbered, totals, strict=True)
    ]
    _bars(figure, [f"{n} {_short(layer['name'])}" for n, layer in numbered], values)
    figure.update_layout(barmode="stack")
    if share:
        ticks = {tick: f"{tick:.0%}" for tick in (0.25, 0.5, 0.75)}
    else:
        ticks = {tick: _large(tick, ".3g") for tick in _round_steps(max(totals))}
    # None at the ends, where half of its label would be cut off.
    figure.update_xaxes(range=[0, 1 if share else max(totals)], tickvals=list(ticks), ticktext=list(ticks.values()))
    return dict(figure.to_dict())


def comparison(patterns: Sequence[Mapping[str, Any]], field: str, *, digits: int) -> dict[str, Any]:
    """One bar for each pattern, with its ratio to the first one."""
    import plotly.graph_objects as go

    numbers = [pattern[field] for pattern in patterns]
    values = [f"{number:,.{digits}f}" for number in numbers]
    if len(numbers) > 1 and numbers[0]:
        values = [f"{text}  ({number / numbers[0]:.2f}×)" for text, number in zip(values, numbers, strict=True)]
    figure = go.Figure()
    figure.add_bar(
        x=numbers,
        y=[row + 0.17 for row in range(len(numbers))],
        orientation="h",
        width=0.42,
        marker={"color": ROLE_MARKERS["linear"][1]},
        hoverinfo="skip",
    )
    _bars(figure, [_short(pattern["pattern"]) for pattern in patterns], values)
    figure.update_xaxes(showticklabels=False, showgrid=False, range=[0, max(numbers) or 1])
    figure.update_layout(margin={"b": 4}, height=_ROW * len(numbers) + 8)
    return dict(figure.to_dict())


def _bars(figure: Any, names: Sequence[str], values: Sequence[str]) -> None:
    """Put names above the bars at the left and values at the right, so that bars keep the whole width."""
    _style(figure, height=_ROW * len(names) + 36, margin={"l": 2, "r": 2, "t": 2, "b": 32})
    figure.update_yaxes(visible=False, fixedrange=True, range=[len(names) - 0.5, -0.5])
    figure.update_xaxes(fixedrange=True, gridcolor=RULE, zeroline=False)
    place = {"xref": "paper", "showarrow": False, "yanchor": "bottom", "yshift": 10, "bgcolor": "#ffffff"}
    texts = [
        {**place, "x": x, "xanchor": anchor, "y": row + 0.17, "text": text, "font": {"size": 13, "color": colour}}
        for row, both in enumerate(zip(names, values, strict=True))
        for x, anchor, text, colour in ((0, "left", both[0], INK), (1, "right", both[1], MUTED))
    ]
    figure.update_layout(annotations=texts)


def _style(figure: Any, *, height: int, margin: Mapping[str, int]) -> None:
    import plotly.graph_objects as go

    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={**margin, "pad": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": MUTED, "font": {"color": INK, "size": 13}, "align": "left"},
        showlegend=False,
        dragmode=False,  # a finger on the plot scrolls the page
    )


def _decades(low: float, high: float) -> dict[str, Any]:
    """Range and ticks of a logarithmic axis: 1, 2 and 5 of each decade, or powers of ten where these are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return {
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.10g}" for tick in ticks],
    }


def _point_text(number: int, layer: Mapping[str, Any]) -> str:
    return (
        f"<b>{number + 1} {_short(layer['name'])}</b><br>{_number(intensity(layer))} useful MACs per byte"
        f"<br>{_number(attained(layer))} GMAC/s attained<br>on the {layer['where']}, bound by {layer['bound']}"
    )


def _short(name: str) -> str:
    return html.escape(name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…", quote=False)


def _number(value: float) -> str:
    """Three or four digits, with separators."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 100 else f"{value:.3g}"


def _round_steps(most: int) -> list[int]:
    """Up to four multiples of 1, 2 or 5 times a power of ten, between 0 and not quite the most."""
    last = 0.92 * most
    step = next(unit * 10**power for power in range(18) for unit in (1, 2, 5) if last < 5 * unit * 10**power)
    return list(range(step, math.floor(last) + 1, step))


def _large(cycles: float, spec: str = "#.4g") -> str:
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if cycles >= 10**power:
            return f"{cycles / 10**power:{spec}} {unit}"
    return f"{cycles:,.0f}"
