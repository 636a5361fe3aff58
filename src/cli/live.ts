/**
 * A view of a network's tables, once or again and again.
 *
 * With `--watch` on a terminal the screen is painted anew each second; elsewhere each round is printed below the last.
 * With `--json --watch` each round is one line of JSON.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Args } from '@oclif/core'
import type { NetworkStats } from '../plugins/contract.ts'
import { watchFlag } from './args.ts'
import { NoidCommand } from './base.ts'

const ROUND_MS = 1000

export abstract class StatsCommand<Row> extends NoidCommand {
  static override args = {
    network: Args.string({ ignoreStdin: true, description: 'The network.', default: 'default' }),
  }
  static override flags = { watch: watchFlag }

  protected abstract rows(s: NetworkStats): readonly Row[]
  /** The rows as text, or what to say when there are none. */
  protected abstract render(rows: readonly Row[], network: string): string

  async run(): Promise<readonly Row[] | undefined> {
    const { args, flags } = await this.parse(StatsCommand)
    const api = await this.daemon(flags)
    const network = args.network
    if (!flags.watch) {
      const stats = await api.stats(network)
      const rows = this.rows(stats)
      this.say(this.render(rows, network))
      for (const w of stats.warnings) this.say(`warning: ${w}`)
      return rows
    }
    this.endWithReader()
    const interrupted = new AbortController()
    process.once('SIGINT', () => interrupted.abort())
    while (!interrupted.signal.aborted) {
      const stats = await api.stats(network)
      const rows = this.rows(stats)
      if (this.jsonEnabled()) process.stdout.write(`${JSON.stringify(rows)}\n`)
      else {
        if (process.stdout.isTTY) process.stdout.write('\u001b[H\u001b[2J')
        this.say(this.render(rows, network))
        for (const w of stats.warnings) this.say(`warning: ${w}`)
        if (!process.stdout.isTTY) this.say()
      }
      await sleep(ROUND_MS, undefined, { signal: interrupted.signal }).catch(() => {})
    }
    return undefined
  }
}
