/**
 * A VM's processes on the host carry its mark as an argument of their own: the stage, what it becomes, and init. So they
 * are found without any record, also when the daemon died before it could make one.
 *
 * Anybody may read the mark and give a process of their own that argument. So it counts only on processes whose real user is the daemon's, or, for
 * root's daemon, one of the VM's own users (identity.ts): set-id programs and another VM's users do not change theirs to these.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { type ProcessStat, processStat, realUser } from '../../sys/process.ts'
import { isUserOf } from './identity.ts'

export const markOf = (vmId: string): string => `noid-vm=${vmId}`

/** Every running process of the VM with its mark. */
export const markedProcesses = (vmId: string): ProcessStat[] => processesWith(markOf(vmId), vmId)

/** Every running process of that VM with that argument. */
export function processesWith(mark: string, vmId: string): ProcessStat[] {
  const found: ProcessStat[] = []
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || !carries(pid, mark)) continue
    const s = processStat(Number(pid))
    // Looked at once more: what is ended is the process of that start time, and the number may have been given again before it was read.
    if (s !== undefined && s.state !== 'Z' && carries(pid, mark) && isOurs(s.pid, vmId)) found.push(s)
  }
  return found
}

function carries(pid: string, mark: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(mark)
  } catch {
    return false
  }
}

function isOurs(pid: number, vmId: string): boolean {
  const uid = realUser(pid)
  const own = process.getuid?.()
  return uid !== undefined && (uid === own || (own === 0 && isUserOf(vmId, uid)))
}
