/**
 * The way into a VM: the words that lead there, and short commands run inside.
 *
 * In order: into the VM's groups (limits.ts), its user namespace, down to its rights (rights.ts), and only then into the
 * namespaces in which the programs are the VM's own. All of it is the host's software until the last step.
 *
 * Everything that is run this way is a member of the VM's pid namespace (nsenter forks for it) and ends with the VM. The
 * programs are the VM's own: whatever they are, they have rights in the VM only, and nothing they print is trusted.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../../errors.ts'
import { limitRights } from './rights.ts'
import { VM_PATH } from './script.ts'

/** What of a VM's handle this runtime keeps for itself. */
export interface SandboxState {
  /** The parent of init: a user's holds the wire namespace. */
  readonly outer: number
  readonly outerStart: string
  readonly dir: string
  readonly id: string
  readonly name: string
  readonly privileged: boolean
  /** The host's id of the VM's root; ids follow from there when range is set. */
  readonly owner: number
  readonly range: boolean
  /** How to join the VM's groups; absent for one that was made before there were any. */
  readonly groups?: readonly string[]
}

const SEARCH = '/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin'
const found = new Map<string, string>()

/** The path of one of the host's tools. Throws TOOL_MISSING. */
export function tool(name: string, packageName = 'util-linux'): string {
  const known = found.get(name)
  if (known !== undefined) return known
  const dir = `${SEARCH}:${process.env.PATH ?? ''}`.split(':').find((d) => d !== '' && existsSync(join(d, name)))
  if (dir === undefined) throw new NoidError('TOOL_MISSING', { tool: name, package: packageName })
  found.set(name, join(dir, name))
  return join(dir, name)
}

export interface Identity {
  readonly uid: number
  readonly gid: number
}

/** $1 ... until --: the groups to join; then the command. It does not run outside of them. */
const joining = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; exec "$@"'

/** The command that runs what follows it in every namespace of the VM, as its root or as another of its users. */
export function enterCommand(pid: number, s: SandboxState, as?: Identity): [string, ...string[]] {
  const nsenter = tool('nsenter')
  const target = ['--target', String(pid)]
  const become = as === undefined || as.uid === 0 ? [] : ['--setuid', String(as.uid), '--setgid', String(as.gid)]
  return [
    ...(['/bin/sh', '-c', joining, 'noid', ...(s.groups ?? []), '--'] as const),
    // A user's VM maps its root to the user, who has nobody else to become.
    ...[nsenter, ...target, '--user', ...(s.privileged ? [] : ['--preserve-credentials'])],
    ...[tool('setpriv'), ...limitRights],
    ...[nsenter, ...target, '--mount', '--uts', '--ipc', '--net', '--pid', ...become],
  ]
}

export interface InsideResult {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Run a short shell script as the VM's root; the words are $1, $2, ... Ends it after `timeoutMs`. */
export function runInside(
  pid: number,
  s: SandboxState,
  script: string,
  words: readonly string[] = [],
  timeoutMs = 10_000,
): Promise<InsideResult> {
  return new Promise((resolve, reject) => {
    const [way, ...further] = enterCommand(pid, s)
    const child = spawn(way, [...further, '/bin/sh', '-c', script, 'noid', ...words], {
      env: { PATH: VM_PATH, HOME: '/root', LC_ALL: 'C' },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      killSignal: 'SIGKILL',
    })
    const text = { stdout: '', stderr: '' }
    // Far more than any answer has; a VM cannot fill the daemon.
    const take = (k: 'stdout' | 'stderr') => (t: string) => {
      if (text[k].length < 1 << 20) text[k] += t
    }
    child.stdout.setEncoding('utf8').on('data', take('stdout'))
    child.stderr.setEncoding('utf8').on('data', take('stderr'))
    child.once('error', reject)
    child.once('close', (code) => resolve({ code: code ?? 255, ...text }))
  })
}
