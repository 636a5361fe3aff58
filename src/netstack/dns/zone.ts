/**
 * The network's own names: what is answered here, with authority, and never leaves.
 *
 * Owns: NAME and NAME.noid.internal of every VM, host., gateway. and dns.noid.internal, the addresses of the subnet in
 * in-addr.arpa, and localhost (RFC 6761 §6.3). A name of a VM alone, without the domain, is answered while there is such a
 * VM; any other single label goes upstream, because a host's own resolver may know it.
 * A known name without records of the type is NODATA, an unknown one NXDOMAIN, both with the zone's SOA (RFC 2308).
 * On `isolated` a VM knows its own name and nobody else's.
 * Records are encoded by dns-packet, without compression, so that they can stand behind any question.
 */
import dnsPacket from 'dns-packet'
import { put16 } from '../wire/bytes.ts'
import { addressText, parseAddress, parseSubnet } from '../wire/ipv4.ts'
import { CLASS_IN, FLAG, nameText, type Query, RCODE, TYPE, writeHead, writeOpt } from './message.ts'

/** Seconds. Names move when a VM is made again; a client asks again soon. */
const TTL = 5

export interface DnsNetwork {
  readonly subnet: string
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
  readonly domain: string
  readonly isolated: boolean
}

interface Host {
  /** −1 for what belongs to the network itself. */
  readonly port: number
  readonly name: string
  readonly address: number
}

type Records = NonNullable<dnsPacket.Packet['answers']>

export class Zone {
  readonly #domain: string
  readonly #isolated: boolean
  readonly #subnet: ReturnType<typeof parseSubnet>
  /** The subnet's reverse zone: the part of in-addr.arpa above it, in whole octets. */
  readonly #reverse: string
  readonly #byName = new Map<string, Host>()
  readonly #byAddress = new Map<number, Host>()

  constructor(n: DnsNetwork) {
    this.#domain = n.domain.toLowerCase()
    this.#isolated = n.isolated
    this.#subnet = parseSubnet(n.subnet)
    const octets = addressText(this.#subnet.base)
      .split('.')
      .slice(0, this.#subnet.bits >> 3)
    this.#reverse = [...octets.reverse(), 'in-addr', 'arpa'].join('.')
    this.#own('gateway', n.gateway)
    this.#own('dns', n.services)
    this.#own('host', n.hostAddress)
  }

  #own(name: string, address: string): void {
    const h = { port: -1, name, address: parseAddress(address) }
    this.#byName.set(name, h)
    this.#byAddress.set(h.address, h)
  }

  /** Idempotent. The network's own names cannot be taken. */
  bind(port: number, name: string, address: string): void {
    this.unbind(port)
    const h = { port, name: name.toLowerCase(), address: parseAddress(address) }
    if (!this.#byName.has(h.name)) this.#byName.set(h.name, h)
    if (!this.#byAddress.has(h.address)) this.#byAddress.set(h.address, h)
  }

  unbind(port: number): void {
    for (const table of [this.#byName, this.#byAddress] as Map<unknown, Host>[])
      for (const [key, h] of table) if (h.port === port) table.delete(key)
  }

  /** The answer to `q` of `port` at out[0], its length returned; 0 when the question is not this zone's. */
  answer(out: Uint8Array, q: Query, port: number): number {
    if (q.class !== CLASS_IN && q.class !== TYPE.ANY) return 0
    const name = nameText(q)
    if (name.endsWith('.arpa')) return this.#answerReverse(out, q, port, name)
    if (name === 'localhost' || name.endsWith('.localhost')) return this.#answerLoopback(out, q, name)
    const inside = name === this.#domain || name.endsWith(`.${this.#domain}`)
    const label = inside ? name.slice(0, -this.#domain.length - 1) : name
    const host = this.#visible(this.#byName.get(label), port)
    if (!inside) {
      if (host === undefined || host.port < 0) return 0
    } else if (label === '') return this.#answerApex(out, q, this.#domain)
    if (host === undefined) return this.#write(out, q, RCODE.NXDOMAIN, [], this.#soa(this.#domain))
    if (q.type !== TYPE.A && q.type !== TYPE.ANY)
      return this.#write(out, q, RCODE.NOERROR, [], this.#soa(inside ? this.#domain : name))
    return this.#write(out, q, RCODE.NOERROR, [{ type: 'A', name, ttl: TTL, data: addressText(host.address) }])
  }

  #answerReverse(out: Uint8Array, q: Query, port: number, name: string): number {
    const labels = name.split('.').slice(0, -2).reverse()
    if (!name.endsWith('.in-addr.arpa') || labels.length === 0) return 0
    // Below the subnet, by its first four octets; with fewer, the zone's own top.
    const octets = labels.slice(0, 4).map((l) => (/^(0|[1-9]\d{0,2})$/.test(l) ? Number(l) : 256))
    const whole = (this.#subnet.bits & 7) === 0
    const below = whole && name.endsWith(`.${this.#reverse}`)
    const soa = this.#soa(this.#reverse)
    if (octets.some((n) => n > 255)) return below ? this.#write(out, q, RCODE.NXDOMAIN, [], soa) : 0
    if (octets.length < 4) {
      if (whole && name === this.#reverse) return this.#answerApex(out, q, name)
      return below ? this.#write(out, q, RCODE.NOERROR, [], soa) : 0
    }
    const address = (octets[0] << 24) | (octets[1] << 16) | (octets[2] << 8) | octets[3]
    if ((address & this.#subnet.mask) !== this.#subnet.base) return 0
    const host = labels.length === 4 ? this.#visible(this.#byAddress.get(address), port) : undefined
    if (host === undefined) return this.#write(out, q, RCODE.NXDOMAIN, [], soa)
    if (q.type !== TYPE.PTR && q.type !== TYPE.ANY) return this.#write(out, q, RCODE.NOERROR, [], soa)
    return this.#write(out, q, RCODE.NOERROR, [{ type: 'PTR', name, ttl: TTL, data: `${host.name}.${this.#domain}` }])
  }

  #answerApex(out: Uint8Array, q: Query, apex: string): number {
    const soa = this.#soa(apex)
    const ns: Records = [{ type: 'NS', name: apex, ttl: TTL, data: `dns.${this.#domain}` }]
    if (q.type === TYPE.SOA) return this.#write(out, q, RCODE.NOERROR, soa)
    if (q.type === TYPE.NS || q.type === TYPE.ANY) return this.#write(out, q, RCODE.NOERROR, ns)
    return this.#write(out, q, RCODE.NOERROR, [], soa)
  }

  #answerLoopback(out: Uint8Array, q: Query, name: string): number {
    if (q.type === TYPE.A) return this.#write(out, q, RCODE.NOERROR, [{ type: 'A', name, ttl: TTL, data: '127.0.0.1' }])
    if (q.type === TYPE.AAAA) return this.#write(out, q, RCODE.NOERROR, [{ type: 'AAAA', name, ttl: TTL, data: '::1' }])
    return this.#write(out, q, RCODE.NOERROR, [], this.#soa('localhost'))
  }

  #visible(h: Host | undefined, port: number): Host | undefined {
    return h === undefined || h.port < 0 || h.port === port || !this.#isolated ? h : undefined
  }

  #soa(zone: string): Records {
    const data = {
      mname: `dns.${this.#domain}`,
      rname: `hostmaster.${this.#domain}`,
      serial: 1,
      refresh: 3600,
      retry: 600,
      expire: 86400,
      minimum: TTL,
    }
    return [{ type: 'SOA', name: zone, ttl: TTL, data }]
  }

  #write(out: Uint8Array, q: Query, rcode: number, answers: Records, authorities: Records = []): number {
    const n = writeHead(out, q, FLAG.AA | rcode)
    const records = dnsPacket.encode({ type: 'response', answers, authorities })
    out.set(records.subarray(12), n)
    put16(out, 6, answers.length)
    put16(out, 8, authorities.length)
    const end = n + records.length - 12
    return q.edns ? writeOpt(out, end, q) : end
  }
}
