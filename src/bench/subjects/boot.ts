/**
 * A runtime as a subject: VMs that are created on the userspace backend, run `true` once, and are destroyed, as the daemon does it (provide, prepare,
 * attach, start, exec), without the command line and the daemon's HTTP around it.
 *
 * A template is part of what is measured, or is forbidden (`cold`); it is made before the first round, by the VM that also finds out the TSC.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Environment } from '../../runtimes/conformance/environment.ts'
import { runtimes } from '../../runtimes/index.ts'
import { makeHost, type Stand, type Subject } from '../stand.ts'

const TEMPLATE_MS = 120_000
const EXECS = 5

interface What {
  readonly runtime: string
  readonly image?: string
  readonly cold?: boolean
  /** Of the VMs. */
  readonly memMib: number
}

const nameOf = (w: What): string => [w.runtime, w.image, w.cold ? 'cold' : undefined].filter(Boolean).join('-')

export const booting = (w: What, version: string, missing: string | undefined): Subject => ({
  name: nameOf(w),
  boots: true,
  async open(): Promise<Stand> {
    if (missing !== undefined) throw new Error(missing)
    const descriptor = runtimes.find((r) => r.name === w.runtime)
    if (descriptor === undefined) throw new Error(`there is no runtime ${w.runtime}`)
    // Read when the runtime is made.
    process.env.NOID_TEMPLATES = w.cold ? '0' : '1'
    const e = await Environment.open(descriptor, {
      memMib: w.memMib,
      ...(w.image === undefined ? {} : { image: w.image }),
    })
    const status = await e.runtime.status()
    if (!status.ok) throw new Error(status.problems[0]?.what ?? 'it is not ready')
    const first = await e.up()
    if (w.runtime === 'qemu') await ripe(e, w.cold === true)
    await e.down(first)
    const notice = await e.runtime.notice?.()
    return {
      name: nameOf(w),
      kind: 'noid',
      version,
      note: [
        `${w.memMib} MiB`,
        w.runtime !== 'qemu' ? '' : w.cold ? 'booted cold' : 'from a template',
        notice ? 'without KVM' : '',
      ]
        .filter(Boolean)
        .join(', '),
      host: await makeHost(),
      guests: [],
      out: false,
      published: false,
      dns: undefined,
      pids: [],
      boot: () => once(e),
    }
  },
})

async function once(e: Environment): Promise<{ readonly create: number; readonly exec: number }> {
  const begin = performance.now()
  const vm = await e.up()
  await e.run(vm, ['true'])
  const create = performance.now() - begin
  const execs: number[] = []
  for (let i = 0; i < EXECS; i++) {
    const before = performance.now()
    await e.run(vm, ['true'])
    execs.push(performance.now() - before)
  }
  await e.down(vm)
  return { create, exec: execs.sort((a, b) => a - b)[EXECS >> 1] as number }
}

/** What the first VM leaves to the next ones is there: the host's TSC frequency, and a template. */
async function ripe(e: Environment, cold: boolean): Promise<void> {
  const { run, state } = e.directories
  const there = (): boolean =>
    cold
      ? /"kvm":true|"tscKhz"/.test(readFileSync(join(run, 'qemu', 'machine.json'), 'utf8'))
      : existsSync(join(state, 'templates')) && readdirSync(join(state, 'templates')).some((n) => !n.startsWith('.'))
  for (const until = Date.now() + TEMPLATE_MS; !there() && Date.now() < until; ) await sleep(200)
}
