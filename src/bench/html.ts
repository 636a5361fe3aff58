/**
 * A report as one HTML file that opens without a network: plain inline SVG, no script, no font, nothing loaded.
 *
 * One chart for each part: a bar for each subject up to its median, a dot for every round, a line from the lowest to the highest; the MTU
 * beside every name. The figures stand beside the bars as text, so that nothing is told by colour or length alone.
 */
import type { Figure, Part, Report, SubjectInfo } from './contract.ts'
import { medianOf, ratio, spread, three, values } from './stats.ts'
import { BUSY, besides, figureOf, ours } from './table.ts'

const WIDTH = 1000
const LABEL = 180
const BARS = 400
const ROW = 22
const BAR = 12

const escaped = (s: string): string =>
  s.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c] as string)

const STYLE = `
:root { color-scheme: light dark; --noid: #2f6fdb; --kernel: #6b7280; --peer: #c2772b; --ink: #1f2328; --soft: #667; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --noid: #6aa0ff; --kernel: #9aa3b2; --peer: #e0a05c; --ink: #e6e8eb; --soft: #9aa; --paper: #15181c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1040px; margin: 2em auto; padding: 0 1em }
h2 { font-size: 1em; margin: 2em 0 .3em } .soft { color: var(--soft) } .busy { border-left: 4px solid var(--peer); padding-left: .7em }
table { border-collapse: collapse; font-size: .9em } td, th { text-align: left; padding: .15em 1em .15em 0; vertical-align: top }
svg { width: 100%; height: auto; display: block } svg text { font: 12px system-ui, sans-serif; fill: var(--ink) } svg .soft { fill: var(--soft) }
.noid { fill: var(--noid) } .kernel { fill: var(--kernel) } .peer, .services { fill: var(--peer) }
.dot { fill: var(--paper); stroke: var(--ink) } .range { stroke: var(--ink); stroke-width: 1 }
`

function row(f: Figure, s: SubjectInfo, y: number, scale: number, versus: string): string {
  const all = values(f)
  const middle = y + ROW / 2
  const x = (v: number): number => LABEL + v * scale
  const label = `<text x="${LABEL - 8}" y="${middle + 4}" text-anchor="end">${escaped(s.name)} <tspan class="soft">${s.mtu}</tspan></text>`
  if (all.length === 0) return `${label}<text x="${LABEL}" y="${middle + 4}" class="soft">${escaped(besides(f))}</text>`
  const [low, high] = spread(all)
  const bar = `<rect class="${s.kind}" x="${LABEL}" y="${middle - BAR / 2}" width="${(medianOf(f) * scale).toFixed(1)}" height="${BAR}" rx="2"/>`
  const range =
    all.length > 1
      ? `<line class="range" x1="${x(low).toFixed(1)}" x2="${x(high).toFixed(1)}" y1="${middle}" y2="${middle}"/>${all
          .map((v) => `<circle class="dot" cx="${x(v).toFixed(1)}" cy="${middle}" r="2.5"/>`)
          .join('')}`
      : ''
  const beside = besides(f)
  const text = `<text x="${LABEL + BARS + 12}" y="${middle + 4}">${three(medianOf(f))}${versus}<tspan class="soft">${
    beside === '' ? '' : ` ${escaped(beside)}`
  }</tspan></text>`
  return label + bar + range + text
}

/** One part as a chart; '' when nobody has it. */
function chart(r: Report, p: Part, us: SubjectInfo | undefined): string {
  const mine = us && figureOf(r, p.id, us.name)
  const rows = r.subjects.flatMap((s) => {
    const f = figureOf(r, p.id, s.name)
    return f === undefined ? [] : [{ f, s }]
  })
  if (rows.length === 0) return ''
  const most = Math.max(...rows.flatMap(({ f }) => values(f)), Number.MIN_VALUE)
  const scale = BARS / most
  const height = rows.length * ROW + 6
  const body = rows.map(({ f, s }, i) => {
    const versus = mine === undefined || s === us ? '' : ` (× ${three(ratio(mine, f))})`
    return row(f, s, i * ROW + 3, scale, versus)
  })
  const lower = p.better === 'lower' ? ', lower is better' : ''
  return `<h2>${escaped(p.title)} <span class="soft">${escaped(p.unit)}${lower}</span></h2>
<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escaped(p.title)}">${body.join('')}</svg>`
}

const cells = (kind: 'td' | 'th', list: readonly string[]): string =>
  `<tr>${list.map((c) => `<${kind}>${escaped(c)}</${kind}>`).join('')}</tr>`

export function reportHtml(r: Report): string {
  const us = ours(r)
  const { rounds, seconds } = r.options
  const kind =
    rounds === 1
      ? 'One round: a first look, not a result'
      : `${rounds} alternating rounds; bars are medians, dots are rounds`
  const busy =
    r.load > BUSY
      ? `<p class="busy">The machine was busy (load ${r.load.toFixed(1)}): these figures are worth less.</p>`
      : ''
  const versus = us === undefined ? '' : ` × is ${us.name} divided by that row.`
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>noid bench</title>
<style>${STYLE}</style>
<h1>noid bench</h1>
<p>${kind}; ${seconds} s each, ${escaped(r.at)}. Beside each name: the MTU its guest sees.${escaped(versus)}
CPU is that of the whole machine, both ends and the tools included.</p>
${busy}
${r.parts.map((p) => chart(r, p, us)).join('\n')}
<h2>What was compared</h2>
<table>${cells('th', ['', 'MTU', 'transmit queue', 'offloads', 'version', ''])}
${r.subjects.map((s) => cells('td', [s.name, `${s.mtu}`, `${s.txQueueLen}`, s.offloads.join(', '), s.version, s.note])).join('\n')}</table>
${r.leftOut.map((l) => `<p class="soft">Left out: ${escaped(l.name)}: ${escaped(l.why)}</p>`).join('\n')}
<h2>The machine</h2>
<table>${r.facts.map(([k, v]) => cells('td', [k, v])).join('\n')}</table>
</html>
`
}
