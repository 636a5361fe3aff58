/**
 * A VM's processes on the host carry its mark as an argument of their own: the stage, what it becomes, and init. So they
 * are found without any record, also when the daemon died before it could make one.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { type ProcessStat, processStat } from '../../sys/process.ts'

export const markOf = (vmId: string): string => `noid-vm=${vmId}`

/** Every running process with that mark. */
export const markedProcesses = (vmId: string): ProcessStat[] => processesWith(markOf(vmId))

/** Every running process with that argument. */
export function processesWith(mark: string): ProcessStat[] {
  const found: ProcessStat[] = []
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(mark)) continue
    } catch {
      continue
    }
    const s = processStat(Number(pid))
    if (s !== undefined && s.state !== 'Z') found.push(s)
  }
  return found
}
