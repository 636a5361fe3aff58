import { createInterface } from 'node:readline/promises'
import { Flags } from '@oclif/core'
import type { Pruned, PruneReport } from '../api/contract.ts'
import { NoidCommand } from '../cli/base.ts'
import { size, table } from '../cli/text.ts'
import { NoidError } from '../errors.ts'

const KIND: Readonly<Record<Pruned['kind'], string>> = {
  vm: 'VM',
  network: 'network',
  'vm-directory': "a VM's directory",
  'network-directory': "a network's directory",
  image: 'image',
  template: 'template',
}

export default class Prune extends NoidCommand {
  static override summary = 'Remove what is left over and nobody uses.'
  static override description =
    'That is: networks made for VMs that are gone, directories no VM or network belongs to, templates no image uses. ' +
    'Stopped and failed VMs, and images no VM is made of, only when asked for.'
  static override examples = [
    '<%= config.bin %> prune --dry-run',
    '<%= config.bin %> prune',
    '<%= config.bin %> prune --vms --images --yes',
  ]
  static override flags = {
    vms: Flags.boolean({ summary: 'Stopped and failed VMs too, with all that is in them.' }),
    images: Flags.boolean({ summary: 'Images too that no VM is made of.' }),
    'dry-run': Flags.boolean({ summary: 'Show what would go; remove nothing.' }),
    yes: Flags.boolean({ char: 'y', summary: 'Do not ask.' }),
  }

  async run(): Promise<PruneReport> {
    const { flags } = await this.parse(Prune)
    const { vms, images } = flags
    const dryRun = flags['dry-run']
    const api = await this.daemon(flags)
    if (vms && !dryRun && !flags.yes) {
      const would = await api.prune({ vms, images, dryRun: true })
      const going = would.removed.filter((r) => r.kind === 'vm')
      if (going.length > 0 && !(await this.#agreed(going))) {
        this.say('nothing is removed')
        return { ...would, removed: [], bytes: 0 }
      }
    }
    const report = await api.prune({ vms, images, dryRun })
    this.#tell(report)
    if (report.failed.length > 0) process.exitCode = 1
    return report
  }

  async #agreed(going: readonly Pruned[]): Promise<boolean> {
    if (this.jsonEnabled() || !process.stdin.isTTY)
      throw new NoidError('INVALID_INPUT', {
        what: `this would remove ${going.map((r) => r.name).join(', ')} with everything inside`,
        hint: 'add --yes to do it, or --dry-run to see more',
      })
    this.say(rows(going))
    const ask = createInterface({ input: process.stdin, output: process.stderr })
    try {
      return /^y(es)?$/i.test((await ask.question('Remove these VMs with everything inside? [y/N] ')).trim())
    } finally {
      ask.close()
    }
  }

  #tell(r: PruneReport): void {
    if (r.removed.length > 0) this.say(rows(r.removed))
    if (r.removed.length === 0 && r.failed.length === 0) this.say('Nothing is left over.')
    else this.say(`${r.dryRun ? 'would give back' : 'gave back'} ${size(r.bytes)}`)
    for (const f of r.failed) this.note(`${f.name} stays: ${f.why}`)
  }
}

const rows = (list: readonly Pruned[]): string =>
  table(list, [
    { head: 'NAME', cell: (r) => r.name },
    { head: 'WHAT', cell: (r) => KIND[r.kind] },
    { head: 'SIZE', cell: (r) => size(r.bytes), right: true },
  ])
