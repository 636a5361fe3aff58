/**
 * What `start` and `restart` share: each VM's progress as one moving line, then where it is to be reached. Arguments are each command's own: oclif's
 * parser does not see those that are inherited.
 */
import type { Vm } from '../api/contract.ts'
import type { Client, Progress } from '../client/client.ts'
import { NoidCommand } from './base.ts'
import { forEachVm } from './many.ts'
import { progressView } from './progress.ts'
import { addresses, both, ports } from './text.ts'

export abstract class BringUp extends NoidCommand {
  static override enableJsonFlag = true

  protected abstract verb(api: Client, name: string, onStep: Progress): Promise<Vm>

  async run(): Promise<Vm[]> {
    const { argv, flags } = await this.parse(this.ctor)
    const api = await this.daemon({ host: flags.host })
    const view = progressView(this.jsonEnabled())
    try {
      return await forEachVm(argv as string[], async (name) => {
        const vm = await this.verb(api, name, view.line)
        view.end()
        const published = vm.ports.length > 0 ? `, ports ${ports(vm.ports)}` : ''
        this.say(`${vm.name} is running at ${both(addresses(vm))}${published}`)
        return vm
      })
    } finally {
      view.end()
    }
  }
}
