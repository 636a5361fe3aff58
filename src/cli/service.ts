/**
 * noid's daemon as a systemd service: the unit's text, and putting it in its place, switching it on and taking it away.
 *
 * Theory of the unit. VMs and data planes are children of the service's group and must outlive it: KillMode=process ends the daemon alone,
 * OOMPolicy=continue keeps a VM that ran out of memory from being the end of all. Delegate=yes is what limits of VMs need. A daemon that was asked to end
 * (or that finds another one at its store) ends with 0 and stays ended; every other end is a fault, and it is started again.
 * Only a file that carries the mark in its first line is ever replaced or removed. Read: systemd.service(5), systemd.kill(5), systemd.exec(5).
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { NoidError } from '../errors.ts'

export const UNIT = 'noid.service'
const MARK = '# Written by `noid daemon install`; `noid daemon uninstall` removes it.'
/** What a daemon is told by its environment, where the one who installs it has it set. */
const INHERITED = ['NOID_HOME', 'NOID_NETWORK_BACKEND', 'NOID_DEBUG']
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** A word of a unit file: quoted, with the manager's own signs taken as they are. */
const word = (s: string): string =>
  `"${s.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('%', '%%').replaceAll('\n', '\\n')}"`
/** In ExecStart a dollar begins a variable, but in its first word, the program. */
const argument = (s: string): string => word(s).replaceAll('$', '$$$$')

export function unitText(user: boolean, argv: readonly string[], env: NodeJS.ProcessEnv): string {
  const set = INHERITED.flatMap((k) => (env[k] ? [`Environment=${word(`${k}=${env[k]}`)}`] : []))
  return [
    MARK,
    '[Unit]',
    'Description=noid: microVMs and their networks',
    ...(user ? [] : ['After=network.target']),
    '',
    '[Service]',
    'Type=simple',
    `ExecStart=${argv.map((a, i) => (i === 0 ? word(a) : argument(a))).join(' ')}`,
    `Environment=${word(`PATH=${PATH}`)}`,
    ...set,
    '# VMs and networks outlive the daemon.',
    'KillMode=process',
    'OOMPolicy=continue',
    'Restart=always',
    'RestartSec=1',
    '# It was asked to end.',
    'RestartPreventExitStatus=0',
    'Delegate=yes',
    'TasksMax=infinity',
    'LimitNOFILE=1048576',
    '',
    '[Install]',
    `WantedBy=${user ? 'default.target' : 'multi-user.target'}`,
    '',
  ].join('\n')
}

export function unitFile(user: boolean, env: NodeJS.ProcessEnv = process.env): string {
  if (!user) return join('/etc/systemd/system', UNIT)
  return join(env.XDG_CONFIG_HOME || join(env.HOME || homedir(), '.config'), 'systemd', 'user', UNIT)
}

/** Is there a manager that one could ask? sd_booted(3); a user's has its socket below XDG_RUNTIME_DIR. */
export function managerRuns(user: boolean, env: NodeJS.ProcessEnv = process.env): boolean {
  if (!existsSync('/run/systemd/system')) return false
  return !user || (env.XDG_RUNTIME_DIR !== undefined && existsSync(join(env.XDG_RUNTIME_DIR, 'systemd', 'private')))
}

/** systemctl(1); throws what it says when it fails and must not. */
export type Systemctl = (args: readonly string[]) => { readonly code: number; readonly text: string }

export interface Installed {
  readonly file: string
  /** The file is new or another one than before. */
  readonly changed: boolean
  /** The manager runs it now, and will after each boot. */
  readonly enabled: boolean
}

/** Idempotent. `stopOther` ends a daemon that was started by a command: the service's takes its place. */
export async function install(o: {
  readonly file: string
  readonly text: string
  readonly systemctl: Systemctl | undefined
  readonly stopOther: (mainPid: number) => Promise<void>
}): Promise<Installed> {
  const had = existing(o.file)
  const changed = had !== o.text
  if (changed) {
    mkdirSync(dirname(o.file), { recursive: true })
    writeFileSync(o.file, o.text, { mode: 0o644 })
  }
  const { systemctl } = o
  if (systemctl === undefined) return { file: o.file, changed, enabled: false }
  if (changed) must(systemctl, ['daemon-reload'])
  const mainPid = Number(systemctl(['show', '--property=MainPID', '--value', UNIT]).text.trim()) || 0
  await o.stopOther(mainPid)
  must(systemctl, ['enable', UNIT])
  must(systemctl, [changed && mainPid !== 0 ? 'restart' : 'start', UNIT])
  return { file: o.file, changed, enabled: true }
}

/** Ends the daemon that the service runs; VMs go on. False when there was nothing. */
export function uninstall(file: string, systemctl: Systemctl | undefined): boolean {
  if (existing(file) === undefined) return false
  if (systemctl !== undefined) must(systemctl, ['disable', '--now', UNIT])
  rmSync(file)
  if (systemctl !== undefined) must(systemctl, ['daemon-reload'])
  return true
}

/** What is in the file; one that somebody else wrote is not ours to touch. */
function existing(file: string): string | undefined {
  if (!existsSync(file)) return undefined
  const text = readFileSync(file, 'utf8')
  if (!text.startsWith(MARK))
    throw new NoidError('INVALID_INPUT', {
      what: `${file} was not written by noid and is left alone`,
      hint: 'remove or rename it first, or edit it by hand: noid daemon install --dry-run shows what would be in it',
    })
  return text
}

function must(systemctl: Systemctl, args: readonly string[]): void {
  const r = systemctl(args)
  if (r.code !== 0)
    throw new NoidError('INTERNAL', { why: `systemctl ${args.join(' ')}: ${r.text.trim() || `exit code ${r.code}`}` })
}
