import type { Vm } from '../api/contract.ts'
import { vmArg } from '../cli/args.ts'
import { BringUp } from '../cli/bring-up.ts'
import type { Client, Progress } from '../client/client.ts'

export default class Start extends BringUp {
  static override summary = 'Start VMs that are stopped.'
  static override usage = 'start [NAME]...'
  static override examples = ['<%= config.bin %> start web', '<%= config.bin %> start web db']
  static override args = { name: vmArg }
  static override strict = false

  protected verb(api: Client, name: string, onStep: Progress): Promise<Vm> {
    return api.start(name, onStep)
  }
}
