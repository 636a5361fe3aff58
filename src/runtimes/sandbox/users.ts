/**
 * Users of a VM, as its own /etc/passwd names them: read inside, parsed here, never trusted for more than numbers.
 */
import { NoidError } from '../../errors.ts'
import type { VmHandle } from '../contract.ts'
import { type Identity, runInside, type SandboxState } from './enter.ts'

export interface VmUser extends Identity {
  readonly name: string
  readonly home: string
}

/** NAME, UID, NAME:GROUP or UID:GID in the text of a passwd and a group file; undefined when there is none. */
export function findUser(spec: string, passwd: string, group: string): VmUser | undefined {
  const [who, groupName] = spec.split(':')
  const rows = passwd.split('\n').map((l) => l.split(':'))
  const row = rows.find((r) => r[0] === who) ?? rows.find((r) => r[2] === who)
  const numeric = /^\d{1,9}$/.test(who ?? '')
  if (row === undefined && !numeric) return undefined
  let gid = Number(row?.[3] ?? who)
  if (groupName !== undefined) {
    const g = group
      .split('\n')
      .map((l) => l.split(':'))
      .find((r) => r[0] === groupName || r[2] === groupName)
    if (g === undefined && !/^\d{1,9}$/.test(groupName)) return undefined
    gid = Number(g?.[2] ?? groupName)
  }
  const uid = Number(row?.[2] ?? who)
  if (!Number.isInteger(uid) || !Number.isInteger(gid)) return undefined
  return { name: row?.[0] ?? String(uid), uid, gid, home: row?.[5] || '/' }
}

/** Throws EXEC_FAILED when the VM has no such user, or can have none but root. */
export async function lookUpUser(vm: string, h: VmHandle, s: SandboxState, spec: string): Promise<VmUser> {
  const script = "cat /etc/passwd 2>/dev/null; printf '\\0'; cat /etc/group 2>/dev/null"
  const r = await runInside(h.pid, s, script)
  const [passwd = '', group = ''] = r.stdout.split('\0')
  const user = findUser(spec, passwd, group)
  if (user === undefined) throw new NoidError('EXEC_FAILED', { vm, why: `it has no user "${spec}"` })
  if (user.uid >= 65536 || user.gid >= 65536)
    throw new NoidError('EXEC_FAILED', { vm, why: `the ids of "${spec}" are above 65535` })
  if (!s.range && user.uid !== 0)
    throw new NoidError('EXEC_FAILED', {
      vm,
      why: 'only root exists in it, because your user has no range in /etc/subuid (noid doctor tells more)',
    })
  return user
}
