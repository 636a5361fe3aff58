import { writeFileSync } from 'node:fs'
import { Flags } from '@oclif/core'
import type { Report } from '../bench/contract.ts'
import { NoidCommand } from '../cli/base.ts'
import { progressView } from '../cli/progress.ts'
import { NoidError } from '../errors.ts'

const ROUNDS = 5
const SECONDS = 1

export default class Bench extends NoidCommand {
  static override summary = 'Compare the network backends, and other tools that are installed, on this machine.'
  static override description =
    `Every backend, the kernel's bridge with iptables, slirp4netns, pasta, vde_switch and dnsmasq, in alternating rounds on the same kind of
guests: throughput, datagrams, round trips, DNS, CPU and memory. Happens in namespaces of its own; nothing is left behind.
As an ordinary user it compares what that user may run. Needs no daemon and no internet.`
  static override examples = [
    '<%= config.bin %> bench --quick',
    '<%= config.bin %> bench --report bench.html',
    '<%= config.bin %> bench --only userspace --only kernel --only tcp --rounds 9',
  ]
  static override flags = {
    quick: Flags.boolean({ summary: 'One round of the most telling measures, within a minute.' }),
    only: Flags.string({
      summary: 'Only this: the name, or its beginning, of a backend, a tool or a measure; may be repeated.',
      multiple: true,
      helpValue: 'NAME',
    }),
    rounds: Flags.integer({ summary: `Alternating rounds; ${ROUNDS} unless --quick.`, min: 1, max: 1000 }),
    seconds: Flags.integer({ summary: 'Of sending, for each throughput.', min: 1, max: 600, default: SECONDS }),
    report: Flags.string({ summary: 'Also write the report as one HTML file with plots.', helpValue: 'FILE.html' }),
  }

  async run(): Promise<Report> {
    const { flags } = await this.parse(Bench)
    const { runBench } = await import('../bench/run.ts')
    const only = (flags.only ?? []).flatMap((o) => o.split(',')).filter((o) => o !== '')
    const rounds = flags.rounds ?? (flags.quick ? 1 : ROUNDS)
    // Written before an hour of work, not after: a place that cannot be written is told now.
    if (flags.report !== undefined) this.#write(flags.report, '')
    const view = progressView(this.jsonEnabled())
    const interrupted = new AbortController()
    const stop = (): void => interrupted.abort(new NoidError('BENCH_FAILED', { why: 'it was interrupted' }))
    for (const s of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(s, stop)
    let began = Date.now()
    try {
      const report = await runBench(
        { quick: flags.quick, rounds, seconds: flags.seconds, only },
        this.config.version,
        (m) => {
          if (m.type === 'note') view.line(m)
          if (m.type !== 'step') return
          if (m.done === 0) began = Date.now()
          view.line({ type: 'step', text: `${m.text} ... ${position(m.done, m.total, Date.now() - began)}` })
        },
        interrupted.signal,
      )
      view.end()
      const { reportText } = await import('../bench/table.ts')
      this.say(reportText(report))
      if (flags.report !== undefined) {
        const { reportHtml } = await import('../bench/html.ts')
        this.#write(flags.report, reportHtml(report))
        this.say(`\nReport: ${flags.report}`)
      }
      if (report.figures.some((f) => f.failed !== undefined)) process.exitCode = 1
      return report
    } finally {
      view.end()
      for (const s of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(s, stop)
    }
  }

  #write(file: string, text: string): void {
    try {
      writeFileSync(file, text)
    } catch (e) {
      throw new NoidError('INVALID_INPUT', {
        what: `the report cannot be written to ${file}: ${(e as Error).message}`,
        hint: 'name a file in a directory that can be written',
      })
    }
  }
}

/** "12 of 80, 3 min left" */
function position(done: number, total: number, ms: number): string {
  const left = done < 3 ? Number.NaN : (ms / done) * (total - done)
  const time = !Number.isFinite(left)
    ? ''
    : left > 90_000
      ? `, ${Math.round(left / 60_000)} min left`
      : `, ${Math.ceil(left / 1000)} s left`
  return `${done + 1} of ${total}${time}`
}
