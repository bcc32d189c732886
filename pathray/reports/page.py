"""What the pages of this project share: their style, and pictures that a click enlarges. One file, no scripts, no net.

Not here: what a page says (pathray.evaluation.report, demo.summary).
"""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light; --ink: #1b2333; --muted: #5f6b7e; --card: #f4f6f9; --line: #dfe4ea; --link: #0b5cad }
body { margin: 0 auto; max-width: 1280px; padding: 48px 28px 80px; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 32px; line-height: 1.2; margin: 0; overflow-wrap: anywhere } h2 { font-size: 20px; margin: 0 0 16px }
h3 { font-size: 15px; margin: 18px 0 6px } a { color: var(--link) } p { max-width: 60em }
.lead, .muted { color: var(--muted) } .lead { max-width: 46em; margin: 12px 0 0 } .muted { font-size: 14px }
section { border-top: 1px solid var(--line); padding-top: 28px; margin-top: 40px }
dl { display: grid; grid-template-columns: minmax(9em, 16em) minmax(0, 1fr); gap: 6px 28px; margin: 0 }
dt { color: var(--muted); overflow-wrap: anywhere } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
dd.plain { font-weight: 400 } li { overflow-wrap: anywhere; margin-bottom: 6px }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; font-weight: 400; overflow-wrap: anywhere }
pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--card); padding: 12px; margin: 0;
  overflow-x: auto; border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: 0 0 28px; min-width: 0 } img { width: 100%; display: block }
figcaption { color: var(--muted); font-size: 14px; margin-top: 8px; max-width: 70em; overflow-wrap: anywhere }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 20px }
nav { margin-top: 20px; display: flex; flex-wrap: wrap; gap: 4px 20px }
.zoom { display: block; position: relative; cursor: zoom-in }
.zoom input { position: absolute; opacity: 0; left: 4px; top: 4px }
.zoom span { display: block; border: 1px solid var(--line); border-radius: 8px; overflow: auto }
.zoom input:focus-visible + span { outline: 3px solid var(--link) }
.zoom input:checked + span { position: fixed; inset: 0; z-index: 9; background: #fff; border-radius: 0;
  cursor: zoom-out }
.zoom input:checked + span img { width: auto; min-width: 100%; max-width: none; min-height: 0; margin: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; white-space: nowrap }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-weight: 600 } thead tr:first-child th { text-align: left; border: 0 }
th.name { text-align: left; color: var(--ink); font-weight: 400; padding-left: 0; white-space: normal; min-width: 9em }
th.name .muted { display: block }
@media (max-width: 700px) {
  body { padding: 24px 16px 48px } h1 { font-size: 26px } section { margin-top: 28px; padding-top: 20px }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0 } dd { margin-bottom: 12px }
  .chart::after { content: "swipe sideways, or tap to enlarge"; color: var(--muted); font-size: 13px }
  .chart img { width: 960px; max-width: none }
}
"""


def figure(source: str, alt: str, caption: str, *, chart: bool = False) -> str:
    """A picture (`source`: a data URI) that a click or the space bar enlarges to its own pixels, and back. `chart`: one
    with text in it, which narrow screens scroll and do not shrink."""
    kind = "zoom chart" if chart else "zoom"
    picture = f'<img alt="{html.escape(alt)}" src="{source}">'
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    toggle = f'<input type="checkbox" aria-label="{html.escape("Enlarge: " + alt[:80])}">'
    return f'<figure><label class="{kind}">{toggle}<span>{picture}</span></label>{below}</figure>'
