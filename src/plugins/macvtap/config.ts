/** What a macvtap network is configured with. Unknown keys are errors. */
import { z } from 'zod'
import { NoidError } from '../../errors.ts'

/** linux/if_link.h: MACVLAN_MODE_*. */
export const MODES = ['bridge', 'private', 'vepa', 'passthru'] as const

const schema = z.strictObject({
  /** The device whose LAN the VMs are on. */
  parent: z.string().regex(/^[^/\s]{1,15}$/, 'is a link name'),
  /** bridge: VMs reach each other; private: they do not; vepa: by way of the external switch; passthru: one VM takes the parent over. */
  mode: z.enum(MODES).default('bridge'),
  /** lan: the LAN's DHCP server. noid: a segment without one; noid gives addresses and names, and there is no way out. */
  addresses: z.enum(['lan', 'noid']).default('lan'),
  leaseSeconds: z.number().int().min(60).max(31_536_000).default(43_200),
})
export type MacvtapConfig = z.output<typeof schema>

const KNOWN = `it knows parent (a link), mode (${MODES.join(', ')}), addresses (lan, noid), leaseSeconds`

/** `undefined` stays: a network needs a parent, which is asked for when one is made. */
export function parseConfig(raw: unknown): MacvtapConfig | Record<string, never> {
  if (raw === undefined || raw === null || Object.keys(raw).length === 0) return {}
  const r = schema.safeParse(raw)
  if (!r.success) {
    // A key that nobody knows first: the rest may be its doing.
    const issue = r.error.issues.find((i) => i.code === 'unrecognized_keys') ?? r.error.issues[0]
    throw invalid(`${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.trim())
  }
  if (r.data.addresses === 'noid' && r.data.mode !== 'bridge')
    throw invalid(`addresses noid needs mode bridge: in mode ${r.data.mode} VMs do not reach noid’s DHCP server`)
  return r.data
}

export const invalid = (why: string): NoidError =>
  new NoidError('INVALID_INPUT', { what: `the configuration of a macvtap network is not valid: ${why}`, hint: KNOWN })
