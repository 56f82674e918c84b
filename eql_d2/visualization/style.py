"""The style of every page: inlined, readable in black and white, on paper and on a narrow screen."""

STYLE = """\
:root { --ink: #1b1f24; --soft: #57606a; --rule: #d0d7de; --ground: #f6f8fa; --accent: #0b4f8a; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
header { padding: 2rem 0 1rem; border-bottom: 3px solid var(--accent); margin-bottom: 1.5rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 2.6rem 0 .8rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 60rem; }
a { color: var(--accent); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.lead { color: var(--soft); font-size: 1.05rem; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--accent); background: var(--ground); padding: .5rem .9rem; max-width: 60rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .8rem 0 0; padding: 0; }
nav [aria-current] { font-weight: 700; text-decoration: none; color: var(--ink); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: .7rem 0; padding: 0;
  font-size: .92rem; }
.legend svg { vertical-align: -2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 .4rem; caption-side: top; }
caption span { position: sticky; left: 0; display: inline-block; max-width: min(100%, calc(100vw - 2rem)); }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); white-space: nowrap; }
tr > :first-child { text-align: left; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 7rem; }
tbody tr:hover > * { background: var(--ground); }
table.text td, table.text th { text-align: left; }
td strong { text-decoration: underline; text-underline-offset: 3px; }
code, pre { font: .86rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code, wbr { overflow-wrap: anywhere; }
th code { overflow-wrap: normal; }
pre { background: var(--ground); border: 1px solid var(--rule); padding: .8rem; overflow-x: auto; max-height: 32rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
figure { margin: 1.2rem 0; }
figcaption { font-size: .92rem; color: var(--ink); margin-top: .4rem; max-width: 60rem; }
img { max-width: 100%; height: auto; display: block; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.plots figure { margin: .4rem 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.6rem 1.4rem; }
.scene { border-top: 1px solid var(--rule); padding-top: .9rem; margin: 0 0 1.2rem; min-width: 0; }
.scene h3 { margin: 0 0 .5rem; font-size: 1rem; }
.panels { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.gallery .panels { grid-template-columns: 1fr; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.6rem; }
.pairs .panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.panels figure { margin: 0; min-width: 0; }
.panels img { max-height: 32rem; width: auto; }
.panels figcaption { font-size: .88rem; }
dl.sets { font-size: .88rem; margin: .5rem 0 0; }
dl.sets > div { margin: .15rem 0; }
dl.sets dt { display: inline; font-weight: 600; }
dl.sets dd { display: inline; margin: 0; overflow-wrap: anywhere; }
.group { padding: 0 .3em; font-size: .76em; font-weight: 700; text-decoration: none; border: 1px solid var(--ink);
  border-radius: 3px; color: var(--ink); }
.group.r { background: #1b1f24; color: #fff; border-style: solid; }
.group.c { border-style: dashed; }
.group.f { border-style: dotted; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: .88rem; }
@media (max-width: 30rem) {
  body { padding: 0 .75rem 2rem; }
  th, td { padding: .3rem .45rem; }
  table { font-size: .85rem; }
}
@media print {
  body { max-width: none; font-size: 10pt; }
  nav, .screen-only { display: none; }
  .scroll { overflow: visible; }
  .panels, .pairs .panels { grid-template-columns: repeat(auto-fit, minmax(5cm, 1fr)); }
  .plots { grid-template-columns: repeat(auto-fit, minmax(7.5cm, 1fr)); }
  figcaption { font-size: 8pt; }
  pre { max-height: none; white-space: pre-wrap; }
  figure, .scene, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
  tbody tr:hover > * { background: none; }
}
"""
