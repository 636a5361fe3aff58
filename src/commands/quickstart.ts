import { Flags } from '@oclif/core'
import { NoidCommand } from '../cli/base.ts'
import { progressView } from '../cli/progress.ts'
import { type Report, runQuickstart, type View } from '../cli/quickstart/run.ts'
import { table } from '../cli/text.ts'

const MARK = { works: 'ok', failed: 'FAILED', skipped: 'skipped' } as const

export default class Quickstart extends NoidCommand {
  static override summary = 'Make two VMs, try everything between them, and remove them again.'
  static override description =
    'Tries addresses, names, the way out, a forwarded port and the speed, in less than two minutes. Needs no internet. ' +
    'Exit code 1 when something did not work.'
  static override examples = [
    '<%= config.bin %> quickstart',
    '<%= config.bin %> quickstart --keep',
    '<%= config.bin %> quickstart --runtime qemu',
    '<%= config.bin %> quickstart --network-backend userspace --json',
  ]
  static override flags = {
    'network-backend': Flags.string({
      summary: 'Who gives the network.',
      env: 'NOID_NETWORK_BACKEND',
      helpValue: 'BACKEND',
    }),
    runtime: Flags.string({
      summary: 'Who gives the VMs: sandbox or qemu.',
      env: 'NOID_RUNTIME',
      helpValue: 'RUNTIME',
    }),
    keep: Flags.boolean({ summary: 'Leave the VMs running.' }),
  }

  async run(): Promise<Report> {
    const { flags } = await this.parse(Quickstart)
    const began = Date.now()
    const api = await this.daemon(flags)
    const report = await runQuickstart(
      api,
      { backend: flags['network-backend'], runtime: flags.runtime, keep: flags.keep },
      this.#view(),
    )
    if (!report.ok) process.exitCode = 1
    if (!this.jsonEnabled()) this.#tell(report, Date.now() - began)
    return report
  }

  /** Steps as they go: on stderr, so that the report alone is the answer. */
  #view(): View {
    const view = progressView(this.jsonEnabled())
    return {
      begin: (step) => view.line({ type: 'step', text: `${step.title} ...` }),
      tell: (text) => view.line({ type: 'step', text: `  ${text}` }),
      end: (o) => {
        view.end()
        if (process.stderr.isTTY) view.line({ type: 'note', text: `${MARK[o.result].padEnd(7)}  ${o.step}` })
      },
    }
  }

  #tell(r: Report, ms: number): void {
    if (r.vms.length > 0) {
      this.say()
      this.say(
        table(r.vms, [
          { head: 'VM', cell: (v) => v.name },
          { head: 'ADDRESS', cell: (v) => v.address ?? '-' },
          { head: 'NETWORK', cell: (v) => v.network },
        ]),
      )
    }
    this.say()
    this.say(
      table(r.steps, [
        { head: 'TRIED', cell: (o) => o.step },
        { head: 'RESULT', cell: (o) => MARK[o.result] },
        { head: 'SEEN', cell: (o) => o.detail },
      ]),
    )
    const failed = r.steps.filter((o) => o.result === 'failed').map((o) => o.step)
    const seconds = (ms / 1000).toFixed(1)
    this.say()
    if (failed.length === 0) this.say(`Everything works (${seconds} s).`)
    else this.say(`Did not work: ${failed.join(', ')} (${seconds} s). noid doctor and noid daemon logs may tell why.`)
    const call = typed()
    this.say('\nNext:')
    if (r.kept) {
      this.say(`  ${call} exec ${r.vms[0]?.name}`)
      this.say(`  ${call} network flows ${r.vms[0]?.network} --watch`)
      this.say(`  ${call} destroy ${r.vms.map((v) => v.name).join(' ')}`)
    } else {
      this.say(`  ${call} create web --port 8080:80`)
      this.say(`  ${call} exec web`)
      this.say(`  ${call} --help`)
    }
  }
}

/** What a person types to get here again: noid when it is installed, npx noid in a checkout. */
function typed(): string {
  const dirs = (process.env.PATH ?? '').split(':').filter((d) => !d.includes('node_modules'))
  const { existsSync } = process.getBuiltinModule('node:fs')
  return dirs.some((d) => d !== '' && existsSync(`${d}/noid`)) ? 'noid' : 'npx noid'
}
