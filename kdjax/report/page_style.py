"""The looks of the page."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<p class="title">$title</p>
<h1>$headline</h1>
<div class="tiles">$tiles</div>
<ul class="findings">$findings</ul>
</header>
<main>
$tables
<section><h2>Figures</h2><div class="figures">$figures</div></section>
$soft_labels
<section class="details">$details</section>
</main>
<footer>$footer</footer>
</body>
</html>
"""

STYLE = """
:root {
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --surface: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --muted: #5b6570;
  --grid: #dfe3e8; --faint: #b9c1ca; --link: #0b5cad; --hit: #1a7f37; --miss: #b42318;
  --teacher: #00805d; --student: #0072b2; --baseline: #c04f00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --surface: #14171b; --raised: #1d2127; --ink: #e8eaed; --muted: #a3acb6;
    --grid: #30363d; --faint: #59626c; --link: #79b8ff; --hit: #56d364;
    --miss: #ff8177; --teacher: #2fc99a; --student: #56b4e9; --baseline: #ff9a4d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 3rem;
  background: var(--surface); color: var(--ink); font: 1rem/1.55 var(--font);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.title { color: var(--muted); margin: 0; font-weight: 600; }
h1 {
  font-size: clamp(1.35rem, 3.4vw, 2rem); line-height: 1.25; margin: .4rem 0 1.4rem;
  text-wrap: pretty; overflow-wrap: break-word;
}
h1 small {
  display: block; margin-top: .3rem; font-size: .6em; font-weight: 500;
  color: var(--muted);
}
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
section { margin: 2.6rem 0 0; }
a { color: var(--link); }
.tiles {
  display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fit, minmax(6.2rem, 1fr));
}
.tile {
  background: var(--raised); border-top: .25rem solid var(--role); border-radius: .4rem;
  padding: .8rem 1rem; display: flex; flex-direction: column;
}
.tile.teacher { --role: var(--teacher); }
.tile.student { --role: var(--student); }
.tile.baseline { --role: var(--baseline); }
.tile .name { font-weight: 600; }
.interval { white-space: nowrap; }
.tile .value {
  white-space: nowrap; font-size: 1.45rem; font-weight: 650; line-height: 1.4;
}
.tile .sub { color: var(--muted); font-size: .88rem; }
.findings { padding: 0; margin: 1.4rem 0 0; list-style: none; max-width: 46rem; }
.findings li { padding: .15rem 0 .15rem 1.4rem; position: relative; }
.findings li::before {
  content: "·"; position: absolute; left: .3rem; font-weight: 700;
}
.findings .hit::before { content: "✓"; color: var(--hit); left: 0; }
.findings .miss::before { content: "✗"; color: var(--miss); left: 0; }
.findings .miss { color: var(--miss); }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th, td {
  padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--grid);
}
td { white-space: nowrap; }
thead th {
  font-weight: 600; vertical-align: bottom;
  border-bottom-color: var(--faint);
}
th:first-child {
  text-align: left; position: sticky; left: 0; background: var(--surface);
  padding-left: 0;
}
tbody th { font-weight: 500; }
tbody tr:first-child > * { font-weight: 700; }
.note, figcaption { color: var(--muted); font-size: .88rem; }
.note { margin: .6rem 0 0; max-width: 52rem; }
.figures {
  display: grid; gap: 1.8rem 2.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
}
.cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; font-family: var(--font); }
figcaption { margin-top: .4rem; }
details { border-top: 1px solid var(--grid); padding: .7rem 0; }
details section { margin-top: 1rem; }
details h2 { display: none; }
summary { cursor: pointer; font-weight: 600; }
pre {
  background: var(--raised); border-radius: .4rem; padding: .8rem 1rem; margin: .5rem 0;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
dt { font-weight: 600; }
dd { margin: 0 0 .6rem; color: var(--muted); }
footer {
  margin-top: 2.6rem; padding-top: 1rem; border-top: 1px solid var(--grid);
  font-size: .88rem;
}
footer dl {
  display: grid; gap: .2rem 2rem; margin: .8rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
}
@media (max-width: 40rem) {
  table { font-size: .78rem; }
  th, td { padding: .4rem .22rem; }
  td, .interval { white-space: normal; }
  .tile { padding: .5rem .6rem; }
  .tile .value { font-size: 1.15rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h1 { font-size: 16pt; }
  .tile, pre { border: 1px solid var(--grid); background: none; }
  .tile { border-top: .25rem solid var(--role); print-color-adjust: exact; }
  .figures { grid-template-columns: 1fr 1fr; }
  .cards { grid-template-columns: 1fr 1fr 1fr; }
  figure, table, .tile { break-inside: avoid; }
  h2, summary, section > p { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: .3rem .35rem; }
  td { white-space: normal; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
