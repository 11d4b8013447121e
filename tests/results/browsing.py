"""What a browser shows of a page."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page


def variants(tab: "Page") -> list[str]:
    """Return the variants that the table shows, in its order."""
    return tab.locator("#variants tbody tr:visible th").all_inner_texts()


def unreadable(tab: "Page", width: int, scheme: "Any") -> list[tuple[str, str]]:
    """Return what axe-core finds serious, and that a phone scrolls sideways, in a window of so many pixels."""
    from axe_playwright_python.sync_playwright import Axe

    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 844})
    tab.wait_for_timeout(1500)  # the charts are drawn anew for another width
    wide = tab.evaluate("document.documentElement.scrollWidth")
    found = Axe().run(tab).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]
    return serious + [("scrolls sideways", f"{wide} pixels")] * (wide > width)
