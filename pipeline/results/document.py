"""An HTML page that opens from disk: words and tables stand before scripts, and charts are drawn in the browser.

Its frame, looks and script are templates/document.*, which every page shares. Charts are Vega-Lite specifications; the
script that draws them comes from vl-convert, and nothing is asked of the network.
"""

import base64
import functools
import gzip
from collections.abc import Mapping
from typing import Any

from pipeline.results import charts, page


def parts(drawn: Mapping[str, charts.Chart]) -> dict[str, Any]:
    """Return what document.html.j2 asks for, of a page with these charts."""
    datasets: dict[str, Any] = {}
    specs = {name: _shared(chart.to_dict(), datasets) for name, chart in drawn.items()}
    return {
        "charts": {"specs": specs, "datasets": datasets},
        "css": source("document.css"),
        "js": source("document.js"),
        "vega": vega(),
    }


def source(name: str) -> str:
    """Return a template as it stands."""
    return (page.TEMPLATES / name).read_text(encoding="utf-8")


def _shared(spec: dict[str, Any], datasets: dict[str, Any]) -> dict[str, Any]:
    """Move a chart's data among those of all: charts of the same data hold it once."""
    datasets |= spec.pop("datasets")
    return spec


@functools.cache
def vega() -> str:
    """Return the script that draws charts, Vega-Embed with all that it needs: gzipped, in base64, half as much."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=charts.VEGA_LITE)
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
