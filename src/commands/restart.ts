import type { Vm } from '../api/contract.ts'
import { vmArg } from '../cli/args.ts'
import { BringUp } from '../cli/bring-up.ts'
import type { Client, Progress } from '../client/client.ts'

export default class Restart extends BringUp {
  static override summary = 'Stop VMs and start them again; address and ports stay.'
  static override usage = 'restart [NAME]...'
  static override examples = ['<%= config.bin %> restart web', '<%= config.bin %> restart web db']
  static override args = { name: vmArg }
  static override strict = false

  protected verb(api: Client, name: string, onStep: Progress): Promise<Vm> {
    return api.restart(name, onStep)
  }
}
