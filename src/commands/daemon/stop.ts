import { setTimeout as sleep } from 'node:timers/promises'
import { NoidCommand } from '../../cli/base.ts'
import { Client } from '../../client/client.ts'
import { probe } from '../../client/daemon.ts'
import { NoidError } from '../../errors.ts'

const STOP_MS = 10_000

export default class DaemonStop extends NoidCommand {
  static override summary = 'Stop the daemon; VMs and their networks go on.'
  static override examples = ['<%= config.bin %> daemon stop && <%= config.bin %> daemon start']

  async run(): Promise<{ stopped: boolean }> {
    const { flags } = await this.parse(DaemonStop)
    const client = new Client(this.target(flags).socket)
    const version = await probe(client)
    if (version === undefined) {
      this.say('no daemon runs')
      return { stopped: false }
    }
    await client.stopDaemon()
    for (const end = Date.now() + STOP_MS; Date.now() < end && alive(version.pid); ) await sleep(20)
    if (alive(version.pid)) throw new NoidError('DAEMON_UNREACHABLE', { socket: client.socket })
    this.say(version.vms > 0 ? `the daemon is stopped; its VMs go on` : 'the daemon is stopped')
    return { stopped: true }
  }
}

/** Signal 0 asks without touching; EPERM still means that it is there. */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === 'EPERM'
  }
}
