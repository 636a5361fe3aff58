/** systemctl(1) of this machine, for the system's manager or the user's; undefined where none runs. */
import { spawnSync } from 'node:child_process'
import { NoidError } from '../errors.ts'
import { managerRuns, type Systemctl } from './service.ts'

const TOOL_MS = 60_000

export function systemctlFor(user: boolean): Systemctl | undefined {
  if (!managerRuns(user)) return undefined
  return (args) => {
    const r = spawnSync('systemctl', [...(user ? ['--user'] : []), '--no-ask-password', ...args], {
      encoding: 'utf8',
      timeout: TOOL_MS,
    })
    return { code: r.status ?? 1, text: r.error === undefined ? `${r.stdout}${r.stderr}` : r.error.message }
  }
}

/** The system's services are root's. */
export function mustManage(user: boolean): void {
  if (!user && process.getuid?.() !== 0)
    throw new NoidError('INVALID_INPUT', {
      what: "only root changes the system's services",
      hint: 'add --user for a service of your own, or use sudo',
    })
}
