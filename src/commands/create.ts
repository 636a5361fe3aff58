import { Args, Flags } from '@oclif/core'
import type { Vm } from '../api/contract.ts'
import { NoidCommand } from '../cli/base.ts'
import { runningText } from '../cli/created.ts'
import { parseMount } from '../cli/mount-args.ts'
import { progressView } from '../cli/progress.ts'

export default class Create extends NoidCommand {
  static override summary = 'Make a VM and start it.'
  static override description =
    'The VM joins a network, which is made on first use, and gets its address by DHCP. Without --network it is the ' +
    "backend's own default network; on the network named isolated a VM reaches the outside and nobody else."
  static override examples = [
    '<%= config.bin %> create web',
    '<%= config.bin %> create web --port 8080:80 --port 5353:53/udp',
    '<%= config.bin %> create db --ip 192.168.100.10 --mem 1024',
    '<%= config.bin %> create untrusted --network isolated',
    '<%= config.bin %> create db --runtime qemu --restart always',
  ]
  static override args = { name: Args.string({ ignoreStdin: true, description: 'Name of the VM.', required: true }) }
  static override flags = {
    'network-backend': Flags.string({
      summary: 'Who gives the network: userspace, or any of `noid backends list`.',
      env: 'NOID_NETWORK_BACKEND',
      helpValue: 'BACKEND',
    }),
    network: Flags.string({ summary: 'Network to join; made when it does not exist.', helpValue: 'NAME' }),
    ip: Flags.string({
      summary: 'Fixed address on the network, of either family; given twice, one of each.',
      multiple: true,
      multipleNonGreedy: true,
      helpValue: 'ADDRESS',
    }),
    mac: Flags.string({ summary: 'Fixed MAC address.' }),
    port: Flags.string({
      char: 'p',
      summary:
        'Forward a port of this machine: [HOSTIP:]HOST:GUEST[/udp]; ranges, and HOST 0 for a free one. An IPv6 HOSTIP is written [::1].',
      multiple: true,
      multipleNonGreedy: true,
      helpValue: 'SPEC',
    }),
    runtime: Flags.string({
      summary: 'Who gives the VM: sandbox (namespaces) or qemu (a kernel of its own).',
      env: 'NOID_RUNTIME',
      helpValue: 'RUNTIME',
    }),
    cpus: Flags.integer({ summary: 'Processors.', min: 1, max: 64 }),
    mem: Flags.integer({ summary: 'Memory in MiB.', min: 16, helpValue: 'MIB' }),
    image: Flags.string({
      summary:
        'Root file system: a directory or tar archive for a sandbox, the name of an image (noid image list) for qemu.',
      helpValue: 'DIR|TAR|NAME',
    }),
    mount: Flags.string({
      char: 'v',
      summary: 'Share a directory of this machine: SRC:DST[:ro].',
      description:
        "The VM's root is root on these files too, where the daemon is root's; :ro keeps it from changing them.",
      multiple: true,
      multipleNonGreedy: true,
      helpValue: 'SPEC',
    }),
    restart: Flags.string({
      summary: 'Start it again when it ends on its own: no, on-failure[:TIMES] or always (also after a reboot).',
      helpValue: 'POLICY',
    }),
    'no-start': Flags.boolean({ summary: 'Make it, and leave it stopped.' }),
  }

  async run(): Promise<Vm> {
    const { args, flags } = await this.parse(Create)
    const api = await this.daemon(flags)
    const view = progressView(this.jsonEnabled())
    let vm: Vm
    try {
      vm = await api.create(
        {
          name: args.name,
          networkBackend: flags['network-backend'],
          network: flags.network,
          ip: flags.ip,
          mac: flags.mac,
          ports: flags.port,
          runtime: flags.runtime,
          cpus: flags.cpus,
          memMib: flags.mem,
          image: flags.image,
          mounts: flags.mount?.map(parseMount),
          restart: flags.restart,
          start: !flags['no-start'],
        },
        view.line,
      )
    } finally {
      view.end()
    }
    if (!this.jsonEnabled()) {
      if (flags['no-start']) this.say(`${vm.name} is made; start it with: noid start ${vm.name}`)
      else this.say(runningText(vm, await api.network(vm.network).catch(() => undefined)))
    }
    return vm
  }
}
