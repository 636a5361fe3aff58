/**
 * What QEMU runs VMs on here: which accelerator, which machine type, at which TSC frequency. Found out once per boot of the host and kept
 * in a file, because the answers cost seconds.
 *
 * KVM: /dev/kvm exists on machines where a guest hangs or QEMU aborts. So it is used only when the processor says vmx or svm and a trial
 * (the firmware of an empty `pc` machine writes its first line to a debug port) succeeded; the trial is killed when it takes too long.
 *
 * TSC: under software emulation (tcg) a guest of type microvm has no timer to measure its TSC against but the PIT, gives up when the host is
 * busy, and hangs. A guest's TSC is the host's there, so it is told the frequency (tsc_early_khz), which one boot on q35 has found
 * ("Refined TSC clocksource calibration", kernel arch/x86/kernel/tsc.c). Until it is known, VMs run on q35.
 *
 * Never does: booting a person's VM. Invariant: `find` ends within a bounded time whatever QEMU does.
 */
import { execFile, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readSync, statSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { readState, writeState } from '../../state-file.ts'
import type { Machine } from './command.ts'

export const PROGRAM = 'qemu-system-x86_64'
const VERSION_MS = 10_000
/** The firmware answers within 100 ms under KVM. */
const TRIAL_MS = 4_000
/** What Linux would believe itself. */
const PLAUSIBLE_KHZ: readonly [number, number] = [100_000, 10_000_000]

export interface Found {
  readonly version: string
  readonly kvm: boolean
  /** Why there is no KVM. */
  readonly why?: string
}

interface Kept extends Found {
  readonly bootId: string
  /** Of the program, so that an upgrade is noticed. */
  readonly stamp: string
  readonly tscKhz?: number
}

export interface MachineOptions {
  /** The file that keeps what was found. */
  readonly file: string
  readonly bootId: string
  readonly program?: string
  readonly cpuinfo?: string
  readonly device?: string
  readonly trialMs?: number
}

export class Machines {
  readonly #o: Required<MachineOptions>
  #finding: Promise<Found> | undefined
  #kept: Kept | undefined

  constructor(o: MachineOptions) {
    this.#o = { program: PROGRAM, cpuinfo: '/proc/cpuinfo', device: '/dev/kvm', trialMs: TRIAL_MS, ...o }
  }

  /** What is here. Throws when QEMU is not. */
  find(): Promise<Found> {
    this.#finding ??= this.#find().catch((e: unknown) => {
      this.#finding = undefined
      throw e
    })
    return this.#finding
  }

  /** The best machine for the next VM. */
  async machine(): Promise<Machine> {
    const { kvm } = await this.find()
    if (kvm) return { accel: 'kvm', type: 'microvm' }
    const tscKhz = this.#kept?.tscKhz
    return tscKhz === undefined ? { accel: 'tcg', type: 'q35' } : { accel: 'tcg', type: 'microvm', tscKhz }
  }

  /** Read the host's TSC frequency from the log of a guest on q35. True when it is known from now on, or not needed. */
  async learn(guestLog: () => string): Promise<boolean> {
    const { kvm } = await this.find()
    const kept = this.#kept as Kept
    if (kvm || kept.tscKhz !== undefined) return true
    const khz = refinedTsc(guestLog())
    if (khz === undefined) return false
    this.#keep({ ...kept, tscKhz: khz })
    return true
  }

  async #find(): Promise<Found> {
    const { file, bootId, program } = this.#o
    const path = programPath(program)
    if (path === undefined) throw new Error(`${program} is not installed`)
    const s = statSync(path)
    const stamp = `${path} ${s.size} ${s.mtimeMs}`
    const kept = readState<Kept>(file)
    if (kept?.bootId === bootId && kept.stamp === stamp) {
      this.#kept = kept
      return kept
    }
    const { stdout } = await promisify(execFile)(path, ['--version'], { timeout: VERSION_MS })
    const version = /version (\S+)/.exec(stdout)?.[1] ?? 'unknown'
    const why = await this.#whyNoKvm(path)
    const tsc = kept?.bootId === bootId ? kept.tscKhz : undefined
    this.#keep({
      bootId,
      stamp,
      version,
      kvm: why === undefined,
      ...(why === undefined ? {} : { why }),
      ...(tsc === undefined ? {} : { tscKhz: tsc }),
    })
    return this.#kept as Kept
  }

  #keep(k: Kept): void {
    this.#kept = k
    const { file } = this.#o
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
    writeState(file, k)
  }

  async #whyNoKvm(program: string): Promise<string | undefined> {
    if (!/^flags\s*:.*\b(vmx|svm)\b/m.test(text(this.#o.cpuinfo)))
      return 'the processor offers no virtualisation (vmx, svm)'
    try {
      closeSync(openSync(this.#o.device, 'r+'))
    } catch (e) {
      return `${this.#o.device} cannot be opened (${(e as NodeJS.ErrnoException).code})`
    }
    return (await trial(program, this.#o.trialMs)) ? undefined : 'a trial guest did not run under KVM'
  }
}

/** Does the firmware's first output come within the time? Whatever happens, the process is gone afterwards. */
function trial(program: string, ms: number): Promise<boolean> {
  const argv = ['-accel', 'kvm', '-M', 'pc', '-m', '16', '-nodefaults', '-no-user-config', '-display', 'none']
  const port = ['-chardev', 'stdio,id=d', '-device', 'isa-debugcon,iobase=0x402,chardev=d']
  const child = spawn(program, [...argv, ...port], { stdio: ['ignore', 'pipe', 'ignore'], cwd: '/' })
  return new Promise((resolve) => {
    const done = (ok: boolean): void => {
      clearTimeout(timer)
      child.kill('SIGKILL')
      resolve(ok)
    }
    const timer = setTimeout(() => done(false), ms)
    child.once('error', () => done(false))
    child.once('exit', () => done(false))
    child.stdout.once('data', () => done(true))
  })
}

/** In kHz, from a kernel's log. */
export function refinedTsc(log: string): number | undefined {
  const found = /Refined TSC clocksource calibration: (\d+)\.(\d{3}) MHz/.exec(log)
  if (found === null) return undefined
  const khz = Number(found[1]) * 1000 + Number(found[2])
  return khz >= PLAUSIBLE_KHZ[0] && khz <= PLAUSIBLE_KHZ[1] ? khz : undefined
}

export function programPath(name: string): string | undefined {
  if (name.startsWith('/')) return isFile(name) ? name : undefined
  for (const dir of [...(process.env.PATH ?? '').split(delimiter), '/usr/bin', '/usr/local/bin']) {
    const path = join(dir, name)
    if (dir !== '' && isFile(path)) return path
  }
  return undefined
}

/** A directory of PATH that this user may not look into has nothing for this user. */
function isFile(path: string): boolean {
  try {
    return statSync(path).isFile()
  } catch {
    return false
  }
}

/** The beginning of a file, or nothing. */
export function text(file: string, max = 1 << 20): string {
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch {
    return ''
  }
  try {
    const b = Buffer.alloc(max)
    return b.toString('latin1', 0, readSync(fd, b, 0, max, 0))
  } catch {
    return ''
  } finally {
    closeSync(fd)
  }
}
