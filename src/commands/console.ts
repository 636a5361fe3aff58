import { vmNamed } from '../cli/active.ts'
import { vmArg } from '../cli/args.ts'
import { NoidCommand } from '../cli/base.ts'
import { pipeExec } from '../client/exec.ts'
import { NoidError } from '../errors.ts'

/** Ctrl-] of telnet and of virsh. */
const ESCAPE = 0x1d

export default class Console extends NoidCommand {
  static override summary = 'Open the serial console of a VM.'
  static override description =
    'What the VM printed last comes first, then what it prints; what you type goes to it. Ctrl-] leaves. Several may look at once. ' +
    'It works without the network and without the agent in the VM, so it is where to look when a VM does not answer.'
  static override examples = ['<%= config.bin %> console db']
  static override args = { name: vmArg }

  async run(): Promise<void> {
    const { args, flags } = await this.parse(Console)
    const name = vmNamed(args.name)
    if (this.jsonEnabled()) {
      throw new NoidError('INVALID_INPUT', {
        what: 'console has no --json: it is what the VM prints',
        hint: `leave out --json; noid logs ${name} shows what it printed so far`,
      })
    }
    const { socket, head } = await (await this.daemon(flags)).console(name)
    const tty = process.stdin.isTTY === true
    if (tty) this.note(`the console of ${name}; Ctrl-] leaves it`)
    const code = await pipeExec(socket, head, { tty, escape: ESCAPE })
    if (tty) process.stderr.write('\r\n')
    process.exit(code)
  }
}
