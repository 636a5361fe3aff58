/**
 * The network's own names: what is answered here, with authority, and never leaves.
 *
 * Owns: NAME and NAME.noid.internal of every VM, host., gateway. and dns.noid.internal, the addresses of the network in
 * in-addr.arpa and ip6.arpa (reverse.ts), and localhost (RFC 6761 §6.3). A name of a VM alone, without the domain, is answered while there is
 * such a VM; any other single label goes upstream, because a host's own resolver may know it.
 * A known name without records of the type (a VM that has only the other family) is NODATA, an unknown one NXDOMAIN, both with the zone's SOA
 * (RFC 2308).
 * On `isolated` a VM knows its own name and nobody else's.
 * Records are encoded by dns-packet, without compression, so that they can stand behind any question. Names in them are this zone's own: dns-packet takes
 * text, and what a guest may have asked for below .localhost has none (a dot within a label, bytes that are no character). Its owner is the question.
 */
import dnsPacket from 'dns-packet'
import { type Address, parseIp } from '../wire/address.ts'
import { put16, put32 } from '../wire/bytes.ts'
import { CLASS_IN, FLAG, HEADER, nameText, type Query, RCODE, TYPE, writeHead, writeOpt } from './message.ts'
import { Reverse4, Reverse6, type ReverseTree } from './reverse.ts'

/** 127.0.0.1 and ::1. */
const LOOPBACK = Uint8Array.of(127, 0, 0, 1)
const LOOPBACK6 = new Uint8Array(16).fill(1, 15)
/** A name that is the question's (RFC 1035 §4.1.4). */
const QUESTION = 0xc000 | HEADER

/** Seconds. Names move when a VM is made again; a client asks again soon. */
const TTL = 5

interface OwnAddresses {
  readonly subnet: string
  readonly gateway: string
  readonly services: string
  readonly hostAddress: string
}

export interface DnsNetwork extends OwnAddresses {
  /** False: the IPv4 addresses above are not used. */
  readonly ipv4?: boolean
  readonly ipv6?: OwnAddresses
  readonly domain: string
  readonly isolated: boolean
}

interface Host {
  /** −1 for what belongs to the network itself. */
  readonly port: number
  readonly name: string
  /** What the name leads to. */
  readonly a: Address | undefined
  readonly aaaa: readonly Address[]
}

/** Is the address in use by whom it was given to? */
export type Speaks = (a: Address) => boolean

type Records = NonNullable<dnsPacket.Packet['answers']>

export class Zone {
  readonly #domain: string
  readonly #isolated: boolean
  readonly #reverse: readonly ReverseTree[]
  readonly #byName = new Map<string, Host>()
  /** By the address's text. */
  readonly #byAddress = new Map<string, Host>()

  readonly #speaks: Speaks

  constructor(n: DnsNetwork, speaks: Speaks = () => false) {
    this.#speaks = speaks
    this.#domain = n.domain.toLowerCase()
    this.#isolated = n.isolated
    const families: OwnAddresses[] = []
    const reverse: ReverseTree[] = []
    if (n.ipv4 !== false) {
      families.push(n)
      reverse.push(new Reverse4(n.subnet))
    }
    if (n.ipv6 !== undefined) {
      families.push(n.ipv6)
      reverse.push(new Reverse6(n.ipv6.subnet))
    }
    this.#reverse = reverse
    for (const [name, which] of [
      ['gateway', 'gateway'],
      ['dns', 'services'],
      ['host', 'hostAddress'],
    ] as const)
      this.#enter(
        -1,
        name,
        families.map((f) => parseIp(f[which])),
      )
  }

  #enter(port: number, name: string, addresses: readonly Address[]): void {
    const a = addresses.find((address) => address.family === 4)
    const h: Host = { port, name, a, aaaa: addresses.filter((address) => address.family === 6) }
    if (!this.#byName.has(name)) this.#byName.set(name, h)
    for (const address of addresses) {
      const text = `${address}`
      if (!this.#byAddress.has(text)) this.#byAddress.set(text, h)
    }
  }

  /**
   * Idempotent. The network's own names cannot be taken.
   * @param addresses all of them lead back to the name; the name leads to the first of IPv4 and to the first of IPv6 that is in use: a
   * VM that asks no DHCPv6 has only what its kernel makes of the prefix, or nothing
   */
  bind(port: number, name: string, addresses: readonly string[]): void {
    this.unbind(port)
    this.#enter(port, name.toLowerCase(), addresses.map(parseIp))
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
    if (name === 'localhost' || name.endsWith('.localhost')) return this.#answerLoopback(out, q)
    const inside = name === this.#domain || name.endsWith(`.${this.#domain}`)
    const label = inside ? name.slice(0, -this.#domain.length - 1) : name
    const host = this.#visible(this.#byName.get(label), port)
    if (!inside) {
      if (host === undefined || host.port < 0) return 0
    } else if (label === '') return this.#answerApex(out, q, this.#domain)
    if (host === undefined) return this.#write(out, q, RCODE.NXDOMAIN, [], this.#soa(this.#domain))
    const records: Records = []
    const wants = (type: number): boolean => q.type === type || q.type === TYPE.ANY
    if (wants(TYPE.A) && host.a !== undefined) records.push({ type: 'A', name, ttl: TTL, data: `${host.a}` })
    const aaaa = wants(TYPE.AAAA) ? this.#addressOf(host) : undefined
    if (aaaa !== undefined) records.push({ type: 'AAAA', name, ttl: TTL, data: `${aaaa}` })
    return this.#write(
      out,
      q,
      RCODE.NOERROR,
      records,
      records.length > 0 ? [] : this.#soa(inside ? this.#domain : name),
    )
  }

  /** Where the name leads over IPv6. A VM that has not been heard there is led to over IPv4; one that has nothing else, to what it was given. */
  #addressOf(host: Host): Address | undefined {
    if (host.port < 0) return host.aaaa[0]
    return host.aaaa.find(this.#speaks) ?? (host.a === undefined ? host.aaaa[0] : undefined)
  }

  #answerReverse(out: Uint8Array, q: Query, port: number, name: string): number {
    for (const tree of this.#reverse) {
      const at = tree.place(name)
      if (at.kind === 'elsewhere') continue
      if (at.kind === 'top') return this.#answerApex(out, q, at.apex)
      const soa = this.#soa(at.apex)
      if (at.kind === 'between') return this.#write(out, q, RCODE.NOERROR, [], soa)
      const host = at.kind === 'address' ? this.#visible(this.#byAddress.get(`${at.address}`), port) : undefined
      if (host === undefined) return this.#write(out, q, RCODE.NXDOMAIN, [], soa)
      if (q.type !== TYPE.PTR && q.type !== TYPE.ANY) return this.#write(out, q, RCODE.NOERROR, [], soa)
      return this.#write(out, q, RCODE.NOERROR, [{ type: 'PTR', name, ttl: TTL, data: `${host.name}.${this.#domain}` }])
    }
    return 0
  }

  #answerApex(out: Uint8Array, q: Query, apex: string): number {
    const soa = this.#soa(apex)
    const ns: Records = [{ type: 'NS', name: apex, ttl: TTL, data: `dns.${this.#domain}` }]
    if (q.type === TYPE.SOA) return this.#write(out, q, RCODE.NOERROR, soa)
    if (q.type === TYPE.NS || q.type === TYPE.ANY) return this.#write(out, q, RCODE.NOERROR, ns)
    return this.#write(out, q, RCODE.NOERROR, [], soa)
  }

  #answerLoopback(out: Uint8Array, q: Query): number {
    const data = q.type === TYPE.A ? LOOPBACK : q.type === TYPE.AAAA ? LOOPBACK6 : undefined
    if (data === undefined) return this.#write(out, q, RCODE.NOERROR, [], this.#soa('localhost'))
    const n = writeHead(out, q, FLAG.AA | RCODE.NOERROR)
    put16(out, 6, 1)
    put16(out, n, QUESTION)
    put16(out, n + 2, q.type)
    put16(out, n + 4, CLASS_IN)
    put32(out, n + 6, TTL)
    put16(out, n + 10, data.length)
    out.set(data, n + 12)
    const end = n + 12 + data.length
    return q.edns ? writeOpt(out, end, q) : end
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
