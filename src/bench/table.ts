/** A report as text for a terminal: facts, subjects, one block for each part with the ratio of noid's first backend to everybody. */
import type { Figure, Part, Report, SubjectInfo } from './contract.ts'
import { medianMore, medianOf, ratio, spread, three, values } from './stats.ts'

/** The load above which figures are worth less. */
export const BUSY = 1.5

/** What figures are compared with the others: userspace when it was measured, else the first backend of noid. */
export function ours(r: Report): SubjectInfo | undefined {
  const own = r.subjects.filter((s) => s.kind === 'noid')
  return own.find((s) => s.name === 'userspace') ?? own[0]
}

export const figureOf = (r: Report, part: string, subject: string): Figure | undefined =>
  r.figures.find((f) => f.part === part && f.subject === subject)

function aligned(rows: readonly (readonly string[])[], right: readonly number[]): string[] {
  const widths = (rows[0] as readonly string[]).map((_, i) => Math.max(...rows.map((row) => (row[i] as string).length)))
  return rows.map((row) =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] as number) : cell.padEnd(widths[i] as number)))
      .join('  ')
      .trimEnd(),
  )
}

/** What is told beside a figure. */
export function besides(f: Figure): string {
  const told: string[] = []
  const cpu = medianMore(f, 'cpu')
  const loss = medianMore(f, 'loss')
  const retransmits = medianMore(f, 'retransmits')
  if (Number.isFinite(cpu)) told.push(`${three(cpu)} CPU s/GB`)
  if (Number.isFinite(loss)) told.push(`loss ${loss.toFixed(loss < 10 ? 1 : 0)} %`)
  if (Number.isFinite(retransmits) && retransmits > 0) told.push(`${three(retransmits)} retransmitted`)
  if (f.failed !== undefined) told.push(`failed: ${f.failed}`)
  return told.join(', ')
}

function block(r: Report, p: Part, us: SubjectInfo | undefined): string[] {
  const mine = us && figureOf(r, p.id, us.name)
  const rows = r.subjects.flatMap((s) => {
    const f = figureOf(r, p.id, s.name)
    if (f === undefined) return []
    const all = values(f)
    const [low, high] = spread(all)
    const range = all.length > 1 ? `[${three(low)} – ${three(high)}]` : ''
    const versus = s === us || mine === undefined ? '' : `× ${three(ratio(mine, f))}`
    return [[`  ${s.name}`, `MTU ${s.mtu}`, three(medianOf(f)), range, versus, besides(f)]]
  })
  if (rows.length === 0) return []
  const lower = p.better === 'lower' ? ', lower is better' : ''
  return ['', `${p.title} (${p.unit}${lower})`, ...aligned(rows, [2])]
}

export function reportText(r: Report): string {
  const us = ours(r)
  const facts = aligned(
    r.facts.map(([k, v]) => [k, v]),
    [],
  )
  const subjects = aligned(
    [
      ['SUBJECT', 'MTU', 'TXQUEUE', 'OFFLOADS', 'VERSION', 'WHAT'],
      ...r.subjects.map((s) => [s.name, `${s.mtu}`, `${s.txQueueLen}`, s.offloads.join(' '), s.version, s.note]),
    ],
    [1, 2],
  )
  const left = r.leftOut.map((l) => `left out: ${l.name}: ${l.why}`)
  const { rounds, seconds } = r.options
  const kind =
    rounds === 1 ? 'one round: a first look, not a result' : `${rounds} alternating rounds: medians, [lowest – highest]`
  const busy = r.load > BUSY ? [`The machine was busy (load ${r.load.toFixed(1)}): these figures are worth less.`] : []
  return [
    ...facts,
    '',
    ...subjects,
    ...left,
    '',
    `${kind}; ${seconds} s each, ${r.took} s in all. CPU is that of the whole machine, both ends and the tools included.`,
    ...(us === undefined ? [] : [`×: ${us.name} divided by that row, median of the rounds.`]),
    ...busy,
    ...r.parts.flatMap((p) => block(r, p, us)),
  ].join('\n')
}
