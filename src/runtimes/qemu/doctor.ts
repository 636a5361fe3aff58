/**
 * What this machine has of what VMs under QEMU need, for `noid doctor`: nothing of it is required, sandboxes run without.
 *
 * Makes nothing that stays: what the runtime has found out already in this boot is read, else it is found out anew and not kept.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Check } from '../sandbox/doctor.ts'
import { Machines, PROGRAM, programPath } from './machine.ts'

export async function checkQemu(runDir: string): Promise<Check[]> {
  const base = { name: 'QEMU (--runtime qemu)', required: false } as const
  const missing = [
    [PROGRAM, 'qemu-system-x86'],
    ['qemu-img', 'qemu-utils'],
  ].filter(([program]) => programPath(program as string) === undefined)
  if (process.arch !== 'x64')
    return [{ ...base, ok: false, detail: `needs an x86-64 machine, this is ${process.arch}`, hint: 'use sandboxes' }]
  if (missing.length > 0)
    return [
      {
        ...base,
        ok: false,
        detail: `not installed: ${missing.map(([program]) => program).join(', ')}`,
        hint: `as root: apt-get install --no-install-recommends ${missing.map(([, name]) => name).join(' ')}`,
      },
    ]
  const kvm = { name: 'KVM', required: false } as const
  const kept = join(runDir, 'qemu', 'machine.json')
  const scratch = existsSync(kept) ? undefined : mkdtempSync(join(tmpdir(), 'noid-doctor-'))
  try {
    const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
    const found = await new Machines({
      file: scratch === undefined ? kept : join(scratch, 'machine.json'),
      bootId,
    }).find()
    return [
      { ...base, ok: true, detail: found.version },
      found.kvm
        ? { ...kvm, ok: true, detail: 'a trial guest ran' }
        : {
            ...kvm,
            ok: false,
            detail: `not used: ${found.why}; VMs under QEMU run in software emulation, several times slower`,
            hint: /cannot be opened/.test(found.why ?? '')
              ? 'as root: usermod -aG kvm USER, then log in again'
              : 'switch virtualisation on in the firmware, or nested virtualisation on the host of this machine',
          },
    ]
  } catch (e) {
    return [{ ...base, ok: false, detail: (e as Error).message, hint: `try it: ${PROGRAM} --version` }]
  } finally {
    if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true })
  }
}
