/**
 * The conformance kit of runtimes: one suite that every runtime can be held against, noid's own or a stranger's. Published as
 * `noid/runtime-conformance`.
 *
 * Theory. A boot is dear, so that one environment (environment.ts) serves all cases of a run, and cases that leave a VM as it was share one.
 * The last test closes it all and fails when anything is left: a process, a link, a rule, a mount of the host.
 * Never does: looking inside a runtime. What is not in src/runtimes/contract.ts cannot be asked here.
 */
import { asBefore, hostState } from '../../plugins/conformance/host-state.ts'
import type { RuntimeDescriptor } from '../contract.ts'
import { cases } from './cases.ts'
import { Environment, type KitOptions } from './environment.ts'

export { type Case, cases, GROUPS, type Group } from './cases.ts'
export type { KitOptions } from './environment.ts'

const CASE_MS = 600_000

/** The suite for node:test: `runtimeConformance(test, descriptor)` in a test file of the runtime's own. */
export function runtimeConformance(
  test: (name: string, options: { timeout: number }, fn: () => Promise<void>) => unknown,
  d: RuntimeDescriptor,
  o: KitOptions = {},
): void {
  const label = o.label ?? d.name
  const before = hostState()
  let opened: Promise<Environment> | undefined
  for (const c of cases) {
    if (o.group !== undefined && c.group !== o.group) continue
    test(`${label}: ${c.group}: ${c.name}`, { timeout: CASE_MS }, async () => {
      opened ??= Environment.open(d, o)
      await c.run(await opened)
    })
  }
  test(`${label}: nothing is left`, { timeout: CASE_MS }, async () => {
    if (opened === undefined) return
    await (await opened).close()
    await asBefore(before)
  })
}
