import { Args, Flags } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { table } from '../../cli/text.ts'
import { NoidError } from '../../errors.ts'
import type { Verdict } from '../../plugins/conformance/index.ts'

const MARK = { passed: 'ok', failed: 'FAILED', skipped: 'skipped' } as const

interface Verification {
  readonly backend: string
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  readonly verdicts: readonly Verdict[]
}

export default class BackendsVerify extends NoidCommand {
  static override summary = 'Hold a network backend against the contract: the conformance kit, on this machine.'
  static override description =
    `Makes networks of its own (10.213.x.0/24) with guests in network namespaces, and compares the host before and after
each case. Needs no daemon. What the backend does not claim, or this machine cannot do, is skipped with the reason.`
  static override examples = [
    '<%= config.bin %> backends verify userspace',
    '<%= config.bin %> backends verify ptp --group gc',
  ]
  static override args = { backend: Args.string({ ignoreStdin: true, description: 'The backend.', required: true }) }
  static override flags = {
    group: Flags.string({ summary: 'Only the cases of this group.' }),
    config: Flags.string({ summary: 'What every network of the kit is configured with, as JSON.', helpValue: 'JSON' }),
  }

  async run(): Promise<Verification> {
    const { args, flags } = await this.parse(BackendsVerify)
    const { describe, GROUPS, verify } = await import('../../plugins/conformance/index.ts')
    if (flags.group !== undefined && !(GROUPS as readonly string[]).includes(flags.group))
      throw new NoidError('INVALID_INPUT', {
        what: `there is no group "${flags.group}"`,
        hint: `there are: ${GROUPS.join(', ')}`,
      })
    const { descriptor, close } = await describe(args.backend)
    const verdicts: Verdict[] = []
    try {
      for await (const v of verify(descriptor, { config: parseJson(flags.config), group: flags.group })) {
        verdicts.push(v)
        this.say(`${MARK[v.outcome].padEnd(8)}${v.group}: ${v.name}${v.why === undefined ? '' : `\n        ${v.why}`}`)
      }
    } finally {
      await close()
    }
    const count = (outcome: Verdict['outcome']): number => verdicts.filter((v) => v.outcome === outcome).length
    const answer = {
      backend: args.backend,
      passed: count('passed'),
      failed: count('failed'),
      skipped: count('skipped'),
      verdicts,
    }
    this.say()
    this.say(
      table(
        [answer],
        [
          { head: 'BACKEND', cell: (a) => a.backend },
          { head: 'PASSED', cell: (a) => String(a.passed) },
          { head: 'FAILED', cell: (a) => String(a.failed) },
          { head: 'SKIPPED', cell: (a) => String(a.skipped) },
        ],
      ),
    )
    if (answer.failed > 0) process.exitCode = 1
    return answer
  }
}

function parseJson(text: string | undefined): unknown {
  if (text === undefined) return undefined
  try {
    return JSON.parse(text) as unknown
  } catch {
    throw new NoidError('INVALID_INPUT', {
      what: `--config is not JSON: ${text}`,
      hint: `for example --config '{"leaseSeconds": 600}'`,
    })
  }
}
