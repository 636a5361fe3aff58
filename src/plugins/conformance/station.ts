/**
 * A guest of the kit that is on its network and has its addresses, and what is asked of it: servers, clients, what they said.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import { networkInterfaces } from 'node:os'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { ClientAnswer, ClientRequest, Granted6 } from '../../runtimes/dhcp-client/lease.ts'
import type { Attachment, BackendDescriptor, NetworkSpec } from '../contract.ts'
import { unprivileged } from './control.ts'
import type { Environment, KitOptions } from './environment.ts'
import type { Guest } from './guest.ts'

const run = promisify(execFile)
const sibling = (name: string) =>
  fileURLToPath(new URL(`${name}${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning']
const PROBE = [...NODE, sibling('./probe')]
/** noid's own DHCP client: one run gets a lease and configures the device. */
const CLIENT = [...NODE, sibling('../../runtimes/dhcp-client/main')]
export const FORGE = [...NODE, sibling('./forge')]

export const MEBIBYTE = 1 << 20

/** A guest that is on the network and has its address. */
export interface Station {
  readonly guest: Guest
  readonly attachment: Attachment
  readonly name: string
  /** Empty on an IPv6-only network. */
  readonly address: string
  /** Empty on an IPv4-only network. */
  readonly address6: string
  /** What the client got of IPv6. */
  readonly ipv6?: Granted6
  readonly ifname: string
}

export async function station(e: Environment, n: NetworkSpec): Promise<Station> {
  const guest = await e.guest()
  const asked = e.request(n, guest)
  const attachment = await e.attach(asked)
  const ifname = 'ifname' in attachment.nic ? attachment.nic.ifname : 'eth0'
  await guest.run('ip', 'link', 'set', 'lo', 'up')
  const [cidr, cidr6] = [false, true].map((six) => attachment.addresses.find((x) => x.includes(':') === six))
  let address = cidr?.split('/')[0]
  let address6 = cidr6?.split('/')[0]
  let ipv6: Granted6 | undefined
  if (attachment.configuredBy === 'dhcp') {
    const request: ClientRequest = {
      mode: 'acquire',
      ifname,
      mac: attachment.mac,
      hostname: asked.name,
      mtu: attachment.mtu,
      ipv4: n.ipv4 !== false,
      ...(address6 === undefined ? {} : { ipv6: { address: address6, prefix: Number(cidr6?.split('/')[1]) } }),
      budgetMs: 60_000,
    }
    const answer = JSON.parse(await guest.run(...CLIENT, JSON.stringify(request))) as ClientAnswer
    assert.ok(answer.ok, answer.ok ? '' : answer.why)
    ipv6 = answer.ipv6
    address = answer.lease?.address ?? address
    address6 = ipv6?.address ?? address6
  }
  assert.ok(address ?? address6, 'no address')
  const has = { address: address ?? '', address6: address6 ?? '', ...(ipv6 === undefined ? {} : { ipv6 }) }
  return { guest, attachment, name: asked.name, ...has, ifname }
}

/** Wait until a probe that serves says so. */
export async function serve(s: Station, ...argv: string[]): Promise<void> {
  const child = s.guest.start(...PROBE, ...argv)
  await new Promise<void>((resolve, reject) => {
    child.stdout?.once('data', () => resolve())
    child.once('exit', () => reject(new Error(`${argv.join(' ')} ended`)))
  })
}

export const probe = async (s: Station, ...argv: string[]): Promise<Record<string, unknown>> =>
  JSON.parse(await s.guest.run(...PROBE, ...argv)) as Record<string, unknown>

/** The same from the host. */
export const hostProbe = async (...argv: string[]): Promise<Record<string, unknown>> =>
  JSON.parse((await run(PROBE[0] as string, [...PROBE.slice(1), ...argv], { timeout: 90_000 })).stdout) as Record<
    string,
    unknown
  >

const isNoid = (name: string): boolean => /^noid\d+$/.test(name)

/** An address of the host that a guest may reach: not loopback, not of one link alone, not one of noid's own. */
export const hostAddress = (family: 'IPv4' | 'IPv6' = 'IPv4'): string | undefined =>
  Object.entries(networkInterfaces())
    .filter(([name]) => !isNoid(name))
    .flatMap(([, addresses]) => addresses ?? [])
    .find((a) => a.family === family && !a.internal && !a.address.startsWith('fe80'))?.address

/** Answers each connection's whole stream with its length and hash, as the probe's tcp-serve does, from this process. */
export async function hashServer(address: string): Promise<Server> {
  const server = createServer({ allowHalfOpen: true }, (c) => {
    const hash = createHash('sha256')
    let bytes = 0
    c.on('error', () => {})
    c.on('data', (d) => {
      hash.update(d)
      bytes += d.length
    })
    c.on('end', () => c.end(JSON.stringify({ bytes, sha256: hash.digest('hex') })))
  })
  await once(server.listen(0, address), 'listening')
  return server
}

export const needs =
  (...wants: ((d: BackendDescriptor, o: KitOptions) => string | undefined)[]) =>
  (d: BackendDescriptor, o: KitOptions): string | undefined => {
    for (const want of [unprivileged, ...wants]) {
      const why = want(d, o)
      if (why !== undefined) return why
    }
    return undefined
  }
export const claims = (key: 'publish' | 'dns' | 'isolation' | 'ipv6') => (d: BackendDescriptor) =>
  d.capabilities[key] ? undefined : `this backend does not claim ${key}`

export function sameHash(r: Record<string, unknown>): void {
  assert.equal(r.error, undefined, `the transfer failed: ${r.error}`)
  const { sent, got } = r as { sent: { bytes: number; sha256: string }; got: { bytes: number; sha256: string } }
  assert.equal(got.bytes, sent.bytes)
  assert.equal(got.sha256, sent.sha256)
}
