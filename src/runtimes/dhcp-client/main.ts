/**
 * One run of the DHCP client: get or prolong what a device of this network namespace has of IPv4, of IPv6 or of both, configure the
 * device, print one ClientAnswer as JSON, end. argv[2] is a ClientRequest.
 *
 * One thread, blocking in poll(2); both families are asked for at once; ends by itself within the request's budget. IPv6 is waited for
 * until there is an address of DHCPv6 and a router; beside IPv4, which is enough to start with, only for a while.
 */
import { decode, encode } from '#dhcp-packet'
import { decode as decode6, encode as encode6 } from '#dhcp-packet/v6'
import { buildFrame, parseFrame } from './frame.ts'
import { buildFrame6, buildSolicitation, isAdvertisement, parseFrame6 } from './frame6.ts'
import { hasDefault6, hasIpv6 } from './ipv6.ts'
import type { ClientAnswer, ClientRequest, Granted6, Lease, Term } from './lease.ts'
import { Link } from './link.ts'
import { DhcpClient, type Outgoing } from './machine.ts'
import { DhcpClient6 } from './machine6.ts'

const BROADCAST_MAC = 'ff:ff:ff:ff:ff:ff'
/** How long IPv6 is waited for once IPv4 is there. */
const PATIENCE6_MS = 3000
const SOLICIT_MS = 250
const LONGEST_SOLICIT_MS = 4000
/** An advertisement is the kernel's to read: a moment after it was seen the route is there. */
const ROUTE_MS = 10

/** Asks for a lease of IPv4. */
class Four {
  readonly #link: Link
  readonly #mac: string
  readonly #client: DhcpClient

  constructor(link: Link, r: ClientRequest) {
    this.#link = link
    this.#mac = r.mac
    const o = { mac: r.mac, hostname: r.hostname, lease: r.lease, random: Math.random }
    const begin = beginning(r.mode, r.lease, Date.now())
    this.#client = new DhcpClient({ ...o, begin: begin === 'again' ? 'reboot' : begin }, performance.now())
  }

  get lease(): Lease | undefined {
    return this.#client.lease
  }

  get deadline(): number {
    return this.#client.deadline
  }

  speak(now: number): void {
    const out = this.#client.due(now)
    if (out !== undefined) this.#link.send(frameOf(out, this.#mac))
  }

  hear(frame: Buffer): void {
    const datagram = parseFrame(frame)
    if (datagram === undefined) return
    try {
      this.#client.receive(decode(datagram.payload), datagram.sourceMac, performance.now(), Date.now())
    } catch {
      // Not a DHCP message: somebody else's.
    }
  }
}

/** Asks for a lease of IPv6, and for a router. */
class Six {
  readonly #link: Link
  readonly #mac: string
  readonly #wanted: NonNullable<ClientRequest['ipv6']>
  readonly #client: DhcpClient6
  readonly #acquires: boolean
  #router = false
  #solicitations = 0
  #nextSolicitation = 0
  #advertised = false

  constructor(link: Link, r: ClientRequest, wanted: NonNullable<ClientRequest['ipv6']>) {
    this.#link = link
    this.#mac = r.mac
    this.#wanted = wanted
    this.#acquires = r.mode === 'acquire'
    const { lease } = wanted
    const begin = beginning(r.mode, lease, Date.now())
    const o = { mac: r.mac, hostname: r.hostname, lease, random: Math.random }
    this.#client = new DhcpClient6(
      { ...o, begin: begin === 'renew' || begin === 'rebind' ? begin : 'solicit' },
      performance.now(),
    )
    this.#nextSolicitation = performance.now()
  }

  get leased(): boolean {
    return this.#client.lease !== undefined
  }

  get complete(): boolean {
    return this.leased && (this.#router || !this.#acquires)
  }

  get deadline(): number {
    const router = this.#router ? Number.POSITIVE_INFINITY : this.#nextSolicitation
    return Math.min(this.#client.deadline, this.#advertised ? performance.now() + ROUTE_MS : router)
  }

  speak(now: number): void {
    if (!this.#router) this.#router = hasDefault6(this.#link.name)
    if (!this.#router && now >= this.#nextSolicitation) {
      this.#link.send(buildSolicitation(this.#mac, this.#solicitations % 2 === 1))
      this.#nextSolicitation = now + Math.min(LONGEST_SOLICIT_MS, SOLICIT_MS * 2 ** this.#solicitations++)
    }
    const out = this.#client.due(now)
    if (out !== undefined) this.#link.send(buildFrame6(this.#mac, encode6(out)))
    this.#advertised &&= !this.#router
  }

  hear(frame: Buffer): void {
    if (isAdvertisement(frame)) this.#advertised = !this.#router
    const payload = parseFrame6(frame)
    if (payload === undefined) return
    try {
      this.#client.receive(decode6(payload), performance.now(), Date.now())
    } catch {
      // Not a DHCPv6 message: somebody else's.
    }
  }

  get granted(): Granted6 {
    const { lease } = this.#client
    const { address, prefix } = this.#wanted
    return {
      address: lease?.address ?? address,
      prefix,
      router: this.#router || hasDefault6(this.#link.name),
      ...(lease === undefined ? {} : { lease }),
    }
  }
}

function main(r: ClientRequest): ClientAnswer {
  // A kernel without IPv6 does with the other family, where there is one.
  const able = hasIpv6(r.ifname)
  if (!able && r.ipv4 === false)
    throw new Error(`the kernel has no IPv6 for ${r.ifname}, and the network has nothing else`)
  const wanted = able ? r.ipv6 : undefined
  const link = new Link(r.ifname, wanted !== undefined)
  if (link.mac !== r.mac.toLowerCase()) throw new Error(`${r.ifname} has the MAC address ${link.mac}, not ${r.mac}`)
  try {
    const four = r.ipv4 === false ? undefined : new Four(link, r)
    const six = wanted === undefined ? undefined : new Six(link, r, wanted)
    exchange(link, r, four, six)
    const lease = four?.lease
    // After a renewal the device still has the old lease; a device that was made again has nothing.
    if (lease !== undefined) link.configure(lease, r.mode === 'renew' ? r.lease : undefined, r.mtu)
    else link.setMtu(r.mtu)
    const ipv6 = six?.granted
    if (ipv6 !== undefined) link.configure6(ipv6.address, ipv6.prefix, wanted?.lease?.address)
    return { ok: true, ...(lease === undefined ? {} : { lease }), ...(ipv6 === undefined ? {} : { ipv6 }) }
  } finally {
    link.close()
  }
}

/** Until everything that was asked for is there. Throws when what cannot be done without is not. */
function exchange(link: Link, r: ClientRequest, four: Four | undefined, six: Six | undefined): void {
  const end = performance.now() + r.budgetMs
  let patience = end
  for (;;) {
    const now = performance.now()
    four?.speak(now)
    six?.speak(now)
    const has4 = four === undefined || four.lease !== undefined
    if (has4 && (six === undefined || six.complete)) return
    // Counted from when IPv4 is there.
    if (four !== undefined && has4 && patience === end) patience = Math.min(end, now + PATIENCE6_MS)
    if (now >= (has4 ? patience : end)) {
      // A network that has IPv6 alone and no server for it; or IPv4 without one.
      if (!has4 || (four === undefined && six?.leased === false))
        throw new Error(
          `no DHCP${has4 ? 'v6' : ''} server answered on ${r.ifname} within ${Math.round(r.budgetMs / 1000)} s`,
        )
      return
    }
    const wake = Math.min(four?.deadline ?? end, six?.deadline ?? end, has4 ? patience : end)
    const frame = link.receive(wake - performance.now())
    if (frame === undefined) continue
    four?.hear(frame)
    six?.hear(frame)
  }
}

/** Where a client begins: RFC 2131's figure 5, and what is like it in RFC 8415. */
function beginning(
  mode: ClientRequest['mode'],
  l: Term | undefined,
  wall: number,
): 'init' | 'again' | 'renew' | 'rebind' {
  if (l === undefined || (l.leaseMs !== null && wall >= l.boundAt + l.leaseMs)) return 'init'
  if (mode === 'acquire') return 'again'
  return wall >= l.boundAt + l.t2Ms ? 'rebind' : 'renew'
}

function frameOf(out: Outgoing, mac: string): Buffer {
  const payload = encode(out.packet)
  return out.to === 'broadcast'
    ? buildFrame(
        { sourceMac: mac, targetMac: BROADCAST_MAC, source: out.packet.ciaddr ?? '0.0.0.0', target: '255.255.255.255' },
        payload,
      )
    : buildFrame({ sourceMac: mac, targetMac: out.to.mac, source: out.to.from, target: out.to.address }, payload)
}

let answer: ClientAnswer
try {
  answer = main(JSON.parse(process.argv[2] as string) as ClientRequest)
} catch (e) {
  answer = { ok: false, why: (e as Error).message }
}
process.stdout.write(JSON.stringify(answer))
