/**
 * The conformance kit: one suite that every backend can be held against, built in or a stranger's. Published as `noid/conformance`.
 *
 * Theory. A case is a name, a group, what it needs (a gate over the descriptor's capabilities and this machine) and a function that throws
 * when the backend breaks its contract. The same list serves node:test (`conformance`) and `noid backends verify` (`verify`). Every
 * case gets an environment of its own (environment.ts): fresh directories, a network nobody uses, guests in network namespaces; and
 * the host's links, addresses, routes, rules, mounts and listening ports are compared before and after, so that "nothing is left" is
 * part of every case.
 *
 * Never does: looking inside a backend. What is not in src/plugins/contract.ts cannot be asked here.
 */
import { NoidError } from '../../errors.ts'
import type { BackendContext, BackendDescriptor } from '../contract.ts'
import { Registry } from '../registry.ts'
import { backendSources } from '../sources.ts'
import type { Case, Group } from './case.ts'
import { control } from './control.ts'
import { Environment, type KitOptions } from './environment.ts'
import { asBefore, hostState } from './host-state.ts'
import { ipv6 } from './ipv6.ts'
import { traffic } from './traffic.ts'

export { type Case, GROUPS, type Group } from './case.ts'
export type { KitOptions } from './environment.ts'

export interface Verdict {
  readonly group: Group
  readonly name: string
  readonly outcome: 'passed' | 'failed' | 'skipped'
  /** Why it failed or was skipped. */
  readonly why?: string
}

export const cases: readonly Case[] = [...control, ...traffic, ...ipv6]

/** A case of one backend, with everything around it. Throws when it fails. */
export async function runCase(c: Case, d: BackendDescriptor, o: KitOptions = {}): Promise<void> {
  const before = hostState()
  const e = await Environment.open(d, o)
  try {
    await c.run(e)
  } finally {
    await e.close()
  }
  await asBefore(before)
}

/** The backend of a name, found as the daemon finds it, with nothing of the daemon. @throws NoidError BACKEND_UNKNOWN, BACKEND_UNAVAILABLE */
export async function describe(name: string): Promise<{ descriptor: BackendDescriptor; close: () => Promise<void> }> {
  const context: BackendContext = { runDir: '', stateDir: '', privileged: false, log: () => {}, notify: () => {} }
  const registry = await Registry.collect(await backendSources(), () => context)
  const problem = registry.problems.find((p) => p.from.includes(name))
  if (problem !== undefined && !registry.descriptors().some((d) => d.name === name))
    throw new NoidError('BACKEND_UNAVAILABLE', { name, why: problem.what })
  return { descriptor: registry.descriptor(name), close: () => registry.close() }
}

/** Run the suite one case after another, telling each verdict as it falls. */
export async function* verify(d: BackendDescriptor, o: KitOptions = {}): AsyncGenerator<Verdict> {
  for (const c of cases) {
    if (o.group !== undefined && c.group !== o.group) continue
    const skip = c.skip?.(d, o)
    if (skip !== undefined) {
      yield { group: c.group, name: c.name, outcome: 'skipped', why: skip }
      continue
    }
    try {
      await runCase(c, d, o)
      yield { group: c.group, name: c.name, outcome: 'passed' }
    } catch (error) {
      yield { group: c.group, name: c.name, outcome: 'failed', why: (error as Error).message }
    }
  }
}

/** The suite for node:test: `conformance(test, descriptor)` in a test file of the backend's own. */
export function conformance(
  test: (name: string, options: { skip: string | false; timeout: number }, fn: () => Promise<void>) => unknown,
  d: BackendDescriptor,
  o: KitOptions = {},
): void {
  for (const c of cases)
    test(`${o.label ?? d.name}: ${c.group}: ${c.name}`, { skip: c.skip?.(d, o) ?? false, timeout: 300_000 }, () =>
      runCase(c, d, o),
    )
}
