import { setTimeout as sleep } from 'node:timers/promises'
import { Flags } from '@oclif/core'
import { NoidCommand } from '../../cli/base.ts'
import { install, UNIT, unitFile, unitText } from '../../cli/service.ts'
import { mustManage, systemctlFor } from '../../cli/systemctl.ts'
import { Client } from '../../client/client.ts'
import { daemonEntry, probe } from '../../client/daemon.ts'
import { ownPaths } from '../../paths.ts'

const STOP_MS = 20_000

export default class DaemonInstall extends NoidCommand {
  static override summary = 'Have systemd run the daemon from boot on, so that VMs with --restart always come back.'
  static override description =
    'Writes a unit and, where systemd runs, enables and starts it. VMs and their networks outlive the service. Safe to repeat.'
  static override examples = [
    'sudo <%= config.bin %> daemon install',
    '<%= config.bin %> daemon install --user',
    '<%= config.bin %> daemon install --dry-run',
  ]
  static override flags = {
    user: Flags.boolean({ summary: "A service of this user's own manager." }),
    'dry-run': Flags.boolean({ summary: 'Show what would be written, and where; change nothing.' }),
  }

  async run(): Promise<{ file: string; text: string; changed: boolean; enabled: boolean }> {
    const { flags } = await this.parse(DaemonInstall)
    const { user } = flags
    const argv = [process.execPath, '--disable-warning=ExperimentalWarning', daemonEntry()]
    const text = unitText(user, argv, process.env)
    const file = unitFile(user)
    if (flags['dry-run']) {
      this.say(`# ${file}\n${text.trimEnd()}`)
      return { file, text, changed: false, enabled: false }
    }
    mustManage(user)
    const done = await install({ file, text, systemctl: systemctlFor(user), stopOther })
    this.say(done.changed ? `${file} is written` : `${file} is as it should be`)
    const ctl = user ? 'systemctl --user' : 'systemctl'
    if (done.enabled) {
      this.say(`the daemon runs as the service ${UNIT}, now and after each boot`)
      if (user) this.say('without a login of yours it runs only with: loginctl enable-linger')
    } else
      this.say(`no systemd runs here to start it; where one does: ${ctl} daemon-reload && ${ctl} enable --now ${UNIT}`)
    return { ...done, text }
  }
}

/** A daemon that a command started: its VMs go on and the service's adopts them. */
async function stopOther(mainPid: number): Promise<void> {
  const client = new Client(ownPaths().socket)
  const running = await probe(client)
  if (running === undefined || running.pid === mainPid) return
  await client.stopDaemon()
  for (const end = Date.now() + STOP_MS; Date.now() < end && (await probe(client)) !== undefined; ) await sleep(50)
}
