/**
 * A chain of plugins run as one (CNI specification, section 3): ADD and CHECK in order, DEL in reverse, each plugin given what the
 * one before it resulted in.
 *
 * Never does: files, namespaces, deciding when. A chain that fails stops; who called ADD calls DEL.
 * Read: CNI SPEC.md section 3 "Execution of Network Configurations", section 4 "Plugin Delegation", CONVENTIONS.md.
 */
import { NoidError } from '../../errors.ts'
import type { Conflist, PluginConf } from './config.ts'
import { type Command, type Parameters, PluginError, runPlugin, versionsOf } from './plugin.ts'
import { type CniResult, flawOf } from './result.ts'

/** A port of portMappings, as CONVENTIONS.md has it. */
export interface PortMapping {
  readonly hostPort: number
  readonly containerPort: number
  readonly protocol: 'tcp' | 'udp'
  readonly hostIP?: string
}

/** What is offered to plugins that declare the capability of that name. */
export interface CapabilityArgs {
  readonly mac: string
  readonly portMappings: readonly PortMapping[]
}

/** A conflist whose name and version are settled. */
export interface Chain {
  readonly name: string
  readonly cniVersion: string
  readonly disableCheck: boolean
  readonly disableGC: boolean
  readonly plugins: readonly PluginConf[]
  readonly binDirs: readonly string[]
}

/** One attachment to a chain; the same for every command. */
export interface Target extends Parameters {
  readonly containerId: string
  readonly netns: string
  readonly ifname: string
  readonly args: string
}

export const atLeast = (version: string, wanted: string): boolean => {
  const [a, b] = [version.split('.').map(Number), wanted.split('.').map(Number)]
  for (let i = 0; i < 3; i++) if (a[i] !== b[i]) return (a[i] ?? 0) > (b[i] ?? 0)
  return true
}

/** Choose the highest version that the conflist allows and every plugin speaks. */
export async function settle(
  list: Conflist,
  binDirs: readonly string[],
  fallbackName: string,
  signal: AbortSignal,
): Promise<Chain> {
  const types = [...new Set(list.plugins.map((p) => p.type))]
  const spoken = await Promise.all(types.map((t) => versionsOf(t, binDirs, list.versions.at(-1) as string, signal)))
  const cniVersion = list.versions.findLast((v) => spoken.every((s) => s.includes(v)))
  if (cniVersion === undefined) {
    const i = spoken.findIndex((s) => !list.versions.some((v) => s.includes(v)))
    throw new NoidError('INVALID_INPUT', {
      what: `the conflist is for CNI ${list.versions.join(', ')}, and the plugin ${types[i] ?? types[0]} speaks ${(spoken[i] ?? spoken[0])?.join(', ')}`,
      hint: 'set cniVersion in the conflist to a version that all its plugins speak',
    })
  }
  return {
    name: list.name ?? fallbackName,
    cniVersion,
    disableCheck: list.disableCheck,
    disableGC: list.disableGC,
    plugins: list.plugins,
    binDirs,
  }
}

export const offers = (c: Pick<Conflist, 'plugins'>, capability: keyof CapabilityArgs): boolean =>
  c.plugins.some((p) => p.capabilities?.[capability] === true)

/** The execution configuration of one plugin. */
function configuration(
  c: Chain,
  p: PluginConf,
  caps: CapabilityArgs | undefined,
  more: Record<string, unknown>,
): Record<string, unknown> {
  const { capabilities, ...own } = p
  const runtimeConfig = Object.fromEntries(Object.entries(caps ?? {}).filter(([name]) => capabilities?.[name] === true))
  return {
    ...own,
    name: c.name,
    cniVersion: c.cniVersion,
    ...(Object.keys(runtimeConfig).length === 0 ? {} : { runtimeConfig }),
    ...Object.fromEntries(Object.entries(more).filter(([, v]) => v !== undefined && v !== null)),
  }
}

async function addOne(
  c: Chain,
  i: number,
  t: Target,
  caps: CapabilityArgs,
  prevResult: CniResult | undefined,
  signal: AbortSignal,
): Promise<CniResult> {
  const p = c.plugins[i] as PluginConf
  const result = await runPlugin(p.type, c.binDirs, 'ADD', configuration(c, p, caps, { prevResult }), t, signal)
  const flaw = flawOf(result)
  if (flaw !== undefined) throw new PluginError(p.type, 'ADD', flaw)
  // Some plugins leave the version out; the next one insists on it.
  return { ...(result as CniResult), cniVersion: (result as CniResult).cniVersion ?? c.cniVersion }
}

/**
 * ADD of every plugin. `soFar` is told the results after each, one for each plugin that is done: should a later one not come to its end,
 * the last of them is what DEL must be given, or rules that name its addresses stay.
 */
export async function add(
  c: Chain,
  t: Target,
  caps: CapabilityArgs,
  signal: AbortSignal,
  soFar: (results: readonly CniResult[]) => void = () => {},
): Promise<CniResult[]> {
  const results: CniResult[] = []
  for (let i = 0; i < c.plugins.length; i++) {
    results.push(await addOne(c, i, t, caps, results[i - 1], signal))
    soFar([...results])
  }
  return results
}

/** DEL of every plugin, the last one first. A plugin that fails stops the chain: what it needs is still there. */
export async function del(
  c: Chain,
  t: Target,
  caps: CapabilityArgs,
  last: CniResult | undefined,
  signal: AbortSignal,
): Promise<void> {
  // prevResult came to DEL with 0.4.0.
  const prevResult = atLeast(c.cniVersion, '0.4.0') ? last : undefined
  for (const p of c.plugins.toReversed())
    await runPlugin(p.type, c.binDirs, 'DEL', configuration(c, p, caps, { prevResult }), t, signal)
}

/** CHECK of every plugin, when the version has it and the conflist does not forbid it. */
export async function check(
  c: Chain,
  t: Target,
  caps: CapabilityArgs,
  prevResult: CniResult,
  signal: AbortSignal,
): Promise<void> {
  if (c.disableCheck || !atLeast(c.cniVersion, '0.4.0')) return
  for (const p of c.plugins)
    await runPlugin(p.type, c.binDirs, 'CHECK', configuration(c, p, caps, { prevResult }), t, signal)
}

/**
 * Other ports for an attachment that exists: the plugins that map ports are given DEL with the old ones and ADD with the
 * new ones, and nobody else is asked. (The specification has no verb for it; DEL and ADD of portmap touch its own rules only.)
 */
export async function remap(
  c: Chain,
  t: Target,
  from: CapabilityArgs,
  to: CapabilityArgs,
  results: readonly CniResult[],
  signal: AbortSignal,
): Promise<void> {
  for (const [i, p] of c.plugins.entries()) {
    if (p.capabilities?.portMappings !== true) continue
    const old = configuration(c, p, from, { prevResult: results.at(-1) })
    await runPlugin(p.type, c.binDirs, 'DEL', old, t, signal)
    await addOne(c, i, t, to, results[i - 1], signal)
  }
}

/** STATUS (1.1): throws what the first plugin that is not ready says. */
export const status = (c: Chain, signal: AbortSignal): Promise<void> => each(c, 'STATUS', {}, signal)

/** GC (1.1): plugins let go of what belongs to no attachment in `valid`. */
export async function gc(
  c: Chain,
  valid: readonly { readonly containerID: string; readonly ifname: string }[],
  signal: AbortSignal,
): Promise<void> {
  if (c.disableGC) return
  // The specification's first text had the second name; plugins of both kinds exist.
  await each(c, 'GC', { 'cni.dev/valid-attachments': valid, 'cni.dev/attachments': valid }, signal)
}

async function each(c: Chain, command: Command, more: Record<string, unknown>, signal: AbortSignal): Promise<void> {
  if (!atLeast(c.cniVersion, '1.1.0')) return
  for (const p of c.plugins)
    await runPlugin(p.type, c.binDirs, command, configuration(c, p, undefined, more), {}, signal)
}
