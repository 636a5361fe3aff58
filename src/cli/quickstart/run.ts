/**
 * Quickstart from the first VM to the last trace of it: runs the steps, keeps what each saw, removes what it made.
 */
import type { Client } from '../../client/client.ts'
import { toNoidError } from '../failure.ts'
import { type Scene, Skipped, type Step, steps } from './steps.ts'

export interface Outcome {
  readonly step: string
  readonly result: 'works' | 'failed' | 'skipped'
  readonly detail: string
}

export interface Report {
  readonly ok: boolean
  readonly vms: readonly { readonly name: string; readonly address: string | null; readonly network: string }[]
  readonly steps: readonly Outcome[]
  readonly kept: boolean
}

export interface View {
  begin(step: Step): void
  tell(text: string): void
  end(outcome: Outcome): void
}

/** Two names that no VM has. */
export function freeNames(taken: ReadonlySet<string>): [string, string] {
  const out: string[] = []
  for (let i = 1; out.length < 2; i++) if (!taken.has(`quick-${i}`)) out.push(`quick-${i}`)
  return [out[0] as string, out[1] as string]
}

export async function runQuickstart(
  api: Client,
  options: Scene['options'] & { readonly keep: boolean },
  view: View,
): Promise<Report> {
  const names = freeNames(new Set((await api.vms()).map((v) => v.name)))
  const scene: Scene = { api, names, options, vms: [], network: undefined, madeNetwork: false }
  const outcomes: Outcome[] = []
  const interrupted = Promise.withResolvers<never>()
  const onSignal = (): void => interrupted.reject(new Error('interrupted'))
  process.once('SIGINT', onSignal)
  process.once('SIGTERM', onSignal)
  interrupted.promise.catch(() => {})
  try {
    let lost = false
    for (const step of steps) {
      view.begin(step)
      const outcome = lost
        ? ({ step: step.title, result: 'skipped', detail: 'there are no VMs' } as const)
        : await attempt(step, scene, view, interrupted.promise)
      if (outcome.result === 'failed' && (step.vital || outcome.detail === 'interrupted')) lost = true
      outcomes.push(outcome)
      view.end(outcome)
    }
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
  }
  const vms = scene.vms.map((v) => ({ name: v.name, address: v.address, network: v.network }))
  const kept = options.keep && scene.vms.length > 0
  if (!kept) {
    const left = await remove(scene)
    if (left !== undefined) outcomes.push({ step: 'removing what was made', result: 'failed', detail: left })
  }
  return { ok: outcomes.every((o) => o.result !== 'failed'), vms, steps: outcomes, kept }
}

async function attempt(step: Step, scene: Scene, view: View, interrupted: Promise<never>): Promise<Outcome> {
  try {
    const detail = await Promise.race([step.run(scene, (t) => view.tell(t)), interrupted])
    return { step: step.title, result: 'works', detail }
  } catch (e) {
    if (e instanceof Skipped) return { step: step.title, result: 'skipped', detail: e.message }
    // A step's own finding is a plain Error; what the daemon refused has a code.
    const known = toNoidError(e)
    const detail = known.code === 'INTERNAL' ? (e as Error).message : `${known.message} (${known.code})`
    return { step: step.title, result: 'failed', detail }
  }
}

/** Remove the VMs, and the network when it was not there before; the first reason why something stayed. */
async function remove(scene: Scene): Promise<string | undefined> {
  let why: string | undefined
  const there = await scene.api.vms().catch(() => [])
  for (const name of scene.names) {
    if (!there.some((v) => v.name === name)) continue
    await scene.api.destroy(name).catch((e: Error) => (why ??= `${name}: ${e.message}`))
  }
  if (scene.madeNetwork && scene.network !== undefined) {
    const network = scene.network.name
    const now = await scene.api.network(network).catch(() => undefined)
    // Somebody else's VM may have joined meanwhile.
    if (now !== undefined && now.vms.length === 0) {
      await scene.api.removeNetwork(network).catch((e: Error) => (why ??= `${network}: ${e.message}`))
    }
  }
  return why
}
