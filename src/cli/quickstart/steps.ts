/**
 * What quickstart tries, in order. A step returns what it saw in one phrase, throws when it did not work, or says that
 * it could not be tried here (Skipped). Every wait is bounded; nothing needs the internet.
 */

import { lookup } from 'node:dns/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Backend, Network, Vm } from '../../api/contract.ts'
import { background, type Captured, capture, lastLine } from '../../client/capture.ts'
import type { Client, Progress } from '../../client/client.ts'
import { NoidError } from '../../errors.ts'
import { FIND_INTERPRETER, type Interpreter, program } from './guest.ts'
import {
  blast,
  count,
  fetchText,
  gbits,
  iperfServer,
  type Listener,
  listen,
  type Meter,
  outsideAddress,
} from './host.ts'

const STEP_MS = 30_000
const NAME_AGAIN_MS = 500
const GUEST_PORT = 8080
/** Seconds of sending in each direction. */
const MEASURE_S = 2
const OUTSIDE_NAME = 'example.com'

export class Skipped extends Error {}

export interface Scene {
  readonly api: Client
  readonly names: readonly [string, string]
  readonly options: { readonly backend?: string | undefined; readonly runtime?: string | undefined }
  vms: Vm[]
  network: Network | undefined
  /** The network did not exist before. */
  madeNetwork: boolean
  interpreter?: Interpreter | undefined
  /** What the backend claims: the rest is not tried. */
  can?: Backend['capabilities'] | undefined
}

export interface Step {
  readonly title: string
  /** When this one fails the rest cannot be tried. */
  readonly vital?: boolean
  run(s: Scene, tell: (text: string) => void): Promise<string>
}

export const steps: readonly Step[] = [
  { title: 'two VMs', vital: true, run: makeVms },
  { title: 'lease by DHCP', run: lease },
  { title: 'ping by name', run: pingByName },
  { title: 'names by DNS', run: ownNames },
  { title: 'DNS of the outside', run: outsideName },
  { title: 'TCP to the outside', run: outboundTcp },
  { title: 'port forward from this machine', run: portForward },
  { title: 'IPv6', run: ipv6 },
  { title: 'throughput', run: throughput },
]

async function makeVms(s: Scene, tell: (text: string) => void): Promise<string> {
  const wanted = s.options.backend ?? 'userspace'
  s.can = (await s.api.backends()).find((b) => b.name === wanted)?.capabilities
  const before = new Set((await s.api.networks()).map((n) => n.name))
  const progress: Progress = (l) => tell(l.text)
  for (const [i, name] of s.names.entries()) {
    const vm = await s.api.create(
      {
        name,
        networkBackend: s.options.backend,
        runtime: s.options.runtime,
        ports: i === 0 && s.can?.publish !== false ? [`0:${GUEST_PORT}`] : [],
      },
      progress,
    )
    s.vms.push(vm)
  }
  s.network = await s.api.network(first(s).network)
  s.madeNetwork = !before.has(s.network.name)
  const found = await capture(s.api, first(s).name, FIND_INTERPRETER, STEP_MS)
  if (found.code === 0) s.interpreter = found.stdout.trim() as Interpreter
  const { subnet, subnet6 } = s.network
  const both = subnet6 === null ? subnet : `${subnet} and ${subnet6}`
  return `${s.vms.map((v) => v.name).join(' and ')} on ${s.network.name}, ${both}`
}

async function lease(s: Scene): Promise<string> {
  const seen = await Promise.all(
    s.vms.map(async (vm) => {
      const r = await capture(s.api, vm.name, ['ip', '-4', '-o', 'addr', 'show', 'dev', 'eth0'], STEP_MS)
      const inside = /inet ([\d.]+)\//.exec(r.stdout)?.[1]
      // A VM without `ip` is taken at the daemon's word.
      if (r.code !== 127 && inside !== vm.address) {
        throw new Error(`${vm.name} has ${inside ?? 'no address'} inside, its lease is ${vm.address}`)
      }
      return `${vm.name} ${vm.address}`
    }),
  )
  if (s.can?.addressing === 'external') return `${seen.join(', ')}, given by the backend`
  const { leases } = await s.api.stats(first(s).network)
  const bound = leases.filter((l) => l.state === 'bound').map((l) => l.address)
  // A guest with a kernel of its own may ask no DHCPv6: SLAAC is enough for it.
  const six = (vm: Vm): string[] => (vm.address6 !== null && vm.runtime === 'sandbox' ? [vm.address6] : [])
  for (const address of s.vms.flatMap((vm) => [vm.address, ...six(vm)]))
    if (!bound.includes(address ?? '')) throw new Error(`no lease of ${address} is bound`)
  return seen.join(', ')
}

async function pingByName(s: Scene): Promise<string> {
  if (s.can?.dns === false) throw new Skipped('the backend has no names')
  const [a, b] = s.names
  const r = await capture(s.api, a, ['ping', '-c', '3', '-i', '0.2', '-W', '2', b], STEP_MS)
  if (r.code === 127) throw new Skipped('no ping in the VM')
  if (r.code !== 0) throw new Error(lastLine(r))
  const ms = /= [\d.]+\/([\d.]+)\//.exec(r.stdout)?.[1]
  return `${a} → ${b}${ms ? `, ${ms} ms` : ''}`
}

async function ownNames(s: Scene): Promise<string> {
  if (s.can?.dns === false) throw new Skipped('the backend has no names')
  const [a, b] = s.names
  const domain = s.network?.domain ?? 'noid.internal'
  const own = await Promise.all([`${b}.${domain}`, `host.${domain}`].map((n) => resolveInside(s, a, n)))
  for (const [name, address] of own) if (address === undefined) throw new Error(`${name} does not resolve`)
  return own.map(([name, address]) => `${name} ${address}`).join(', ')
}

/** A name of the outside must resolve in a VM exactly when this machine can resolve it. */
async function outsideName(s: Scene): Promise<string> {
  const [inside, outside] = await Promise.all([
    resolveInside(s, s.names[0], OUTSIDE_NAME),
    within(STEP_MS, lookup(OUTSIDE_NAME, 4)).catch(() => undefined),
  ])
  if (inside[1] !== undefined) return `${OUTSIDE_NAME} ${inside[1]}`
  if (outside !== undefined) throw new Error(`${OUTSIDE_NAME} resolves on this machine, not in ${s.names[0]}`)
  throw new Skipped(`this machine cannot resolve ${OUTSIDE_NAME} itself; is it offline?`)
}

async function resolveInside(s: Scene, vm: string, name: string): Promise<[string, string | undefined]> {
  const r = await capture(s.api, vm, ['getent', 'ahostsv4', name], STEP_MS).catch(() => undefined)
  if (r?.code === 127) throw new Skipped('no getent in the VM')
  return [name, r?.code === 0 ? r.stdout.split(/\s/)[0] : undefined]
}

async function outboundTcp(s: Scene): Promise<string> {
  const { address, interpreter } = needs(s)
  const listener = await listen(address, (c) => c.end('hello from outside\n'))
  try {
    const r = await capture(s.api, s.names[0], program(interpreter, 'fetch', address, listener.port), STEP_MS)
    if (!r.stdout.includes('hello from outside')) throw new Error(lastLine(r))
    return `${s.names[0]} → ${address}:${listener.port}`
  } finally {
    listener.close()
  }
}

async function portForward(s: Scene): Promise<string> {
  if (s.can?.publish === false) throw new Skipped('the backend publishes no ports')
  const published = first(s).ports[0]
  if (published === undefined) throw new Error('no port was published')
  if (s.interpreter === undefined) throw new Skipped('no python3, perl or node in the VM')
  const server = await background(s.api, s.names[0], program(s.interpreter, 'serve', GUEST_PORT))
  try {
    await within(STEP_MS, server.firstLine)
    const text = await fetchText('127.0.0.1', published.hostPort, STEP_MS)
    const peer = /^hello (\S+)/.exec(text)?.[1]
    if (peer === undefined) throw new Error(`127.0.0.1:${published.hostPort} answered nothing`)
    return `127.0.0.1:${published.hostPort} → ${s.names[0]}:${GUEST_PORT}, which saw ${peer}`
  } finally {
    server.kill()
  }
}

/** Between the VMs by name, and to this machine where it has IPv6; that it has none is no fault of the network. */
async function ipv6(s: Scene): Promise<string> {
  const reserved = s.vms[1]?.address6
  if (s.can?.ipv6 !== true) throw new Skipped('the backend has no IPv6')
  if (s.network?.subnet6 == null || reserved == null) throw new Skipped(`the network ${s.network?.name} is IPv4-only`)
  const [a, b] = s.names
  // The name leads to the address that the VM uses: the reserved one, or what its kernel made of the prefix.
  const named = `${b}.${s.network.domain}`
  let to: string | undefined
  // The network knows of it once it has been heard, which may be a moment after its start.
  for (const until = performance.now() + STEP_MS; ; await sleep(NAME_AGAIN_MS)) {
    const name = await capture(s.api, a, ['getent', 'ahostsv6', named], STEP_MS)
    to = name.code === 127 || !s.can.dns ? reserved : name.stdout.split(/\s/)[0]
    if (to?.includes(':') && !to.startsWith('::ffff:')) break
    if (performance.now() > until) throw new Error(`${b} has no IPv6 address by name`)
  }
  const r = await capture(s.api, a, ['ping', '-6', '-c', '3', '-i', '0.2', '-W', '2', to], STEP_MS)
  if (r.code !== 127 && r.code !== 0) throw new Error(lastLine(r))
  const seen = `${a} → ${b} ${to}`
  const outside = outsideAddress('IPv6')
  if (outside === undefined) return `${seen}; this machine has no IPv6 address, so nothing further`
  if (s.interpreter === undefined) return seen
  const listener = await listen(outside, (c) => c.end('hello from outside\n'))
  try {
    const got = await capture(s.api, a, program(s.interpreter, 'fetch', outside, listener.port), STEP_MS)
    if (!got.stdout.includes('hello from outside')) throw new Error(lastLine(got))
    return `${seen}, ${a} → [${outside}]:${listener.port}`
  } finally {
    listener.close()
  }
}

async function throughput(s: Scene): Promise<string> {
  const { address } = needs(s)
  const fast = await iperf(s, address)
  if (fast !== undefined) return said(fast[0], fast[1], 'iperf3')
  const out = await measure(s, 'send', count)
  const back = await measure(s, 'receive', (c, m) => blast(c, MEASURE_S, m))
  return said(gbits(out), gbits(back), s.interpreter ?? '')
}

const said = (out: number, back: number, with_: string): string =>
  `VM → outside ${out.toFixed(1)} Gbit/s, outside → VM ${back.toFixed(1)} Gbit/s (TCP, ${with_}, ${MEASURE_S} s each)`

/** Both ways with iperf3, when this machine and the VM have it. */
async function iperf(s: Scene, address: string): Promise<[number, number] | undefined> {
  const server = await iperfServer(address)
  if (server === undefined) return undefined
  try {
    const rates: number[] = []
    for (const more of [[], ['-R']]) {
      const argv = ['iperf3', '-J', '-c', address, '-p', String(server.port), '-t', String(MEASURE_S), ...more]
      const r = await capture(s.api, s.names[0], argv, STEP_MS)
      const rate = r.code === 0 ? JSON.parse(r.stdout).end?.sum_received?.bits_per_second : undefined
      if (typeof rate !== 'number') return undefined
      rates.push(rate / 1e9)
    }
    return [rates[0] as number, rates[1] as number]
  } finally {
    server.close()
  }
}

async function measure(
  s: Scene,
  verb: 'send' | 'receive',
  handle: (c: import('node:net').Socket, m: Meter) => void,
): Promise<Meter> {
  const { address, interpreter } = needs(s)
  const meter: Meter = { bytes: 0, seconds: 0 }
  const listener: Listener = await listen(address, (c) => handle(c, meter))
  try {
    const argv = program(interpreter, verb, address, listener.port, MEASURE_S)
    const r: Captured = await capture(s.api, s.names[0], argv, STEP_MS)
    if (r.code !== 0) throw new Error(lastLine(r))
    if (meter.bytes === 0) throw new Error('no byte arrived')
    return meter
  } finally {
    listener.close()
  }
}

function needs(s: Scene): { address: string; interpreter: Interpreter } {
  const address = outsideAddress()
  if (address === undefined) throw new Skipped('this machine has no address but loopback')
  if (s.interpreter === undefined) throw new Skipped('no python3, perl or node in the VM')
  return { address, interpreter: s.interpreter }
}

function first(s: Scene): Vm {
  const vm = s.vms[0]
  if (vm === undefined) throw new NoidError('INTERNAL', { why: 'quickstart has no VM' })
  return vm
}

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new Error(`no answer within ${ms / 1000} s`)), ms)
  try {
    return await Promise.race([work, late.promise])
  } finally {
    clearTimeout(timer)
  }
}
