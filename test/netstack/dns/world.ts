/**
 * A name service with guests and upstream servers played by the test, on a clock of its own.
 *
 * `upstream` answers what the proxy asks: by default the records that dns-packet encodes for `records(question)`; undefined is silence.
 */
import assert from 'node:assert/strict'
import dnsPacket, { type DecodedPacket, type Packet } from 'dns-packet'
import { type DnsPolicy, DnsServer } from '../../../src/netstack/dns/server.ts'
import { parseIp } from '../../../src/netstack/wire/address.ts'
import { MemoryHost, type MemorySocket } from '../memory-host.ts'

export const network = {
  subnet: '192.168.100.0/24',
  gateway: '192.168.100.1',
  services: '192.168.100.2',
  hostAddress: '192.168.100.254',
  domain: 'noid.internal',
  isolated: false,
  mtu: 1500,
}
const SERVICES = parseIp(network.services)

/** The same network's other family: give it to a World that is to have both. */
export const ipv6 = {
  subnet: 'fd12:3456:789a:1::/64',
  gateway: 'fd12:3456:789a:1::1',
  services: 'fd12:3456:789a:1::2',
  hostAddress: 'fd12:3456:789a:1::254',
}
const SERVICES6 = parseIp(ipv6.services)

export interface Asked {
  readonly sock: MemorySocket
  /** "10.0.0.53:53" */
  readonly server: string
  readonly tcp: boolean
  readonly bytes: Uint8Array
  readonly packet: DecodedPacket
}

export type Reply = Uint8Array | Packet | undefined | 'refuse'

export interface Told {
  readonly port: number
  readonly to: string
  readonly bytes: Uint8Array
}

export const rcodeOf = (b: Uint8Array): number => b[3] & 15
export const isTruncated = (b: Uint8Array): boolean => (b[2] & 2) !== 0
export const idOf = (b: Uint8Array): number => (b[0] << 8) | b[1]

/** RFC 8914 option of an answer: [code, text]. */
export function edeOf(b: Uint8Array): [number, string] | undefined {
  const opt = dnsPacket.decode(Buffer.from(b)).additionals?.find((r) => r.type === 'OPT') as
    | { options: { code: number; data: Buffer }[] }
    | undefined
  const data = opt?.options.find((o) => o.code === 15)?.data
  return data === undefined ? undefined : [data.readUInt16BE(0), data.subarray(2).toString()]
}

export interface Question {
  name: string
  type?: string
  id?: number
  edns?: { size?: number; dnssec?: boolean; options?: { code: number; data: Buffer }[] }
  flags?: number
}

export function query(q: Question): Buffer {
  const additionals = q.edns && [
    {
      type: 'OPT',
      name: '.',
      udpPayloadSize: q.edns.size ?? 1232,
      flags: q.edns.dnssec ? dnsPacket.DNSSEC_OK : 0,
      options: q.edns.options ?? [],
    },
  ]
  return dnsPacket.encode({
    type: 'query',
    id: q.id ?? 0x1234,
    flags: q.flags ?? dnsPacket.RECURSION_DESIRED,
    questions: [{ type: (q.type ?? 'A') as 'A', name: q.name }],
    additionals: additionals as Packet['additionals'],
  })
}

export class World {
  readonly host = new MemoryHost({ seed: 42 })
  readonly told: Told[] = []
  readonly drops: string[] = []
  readonly asked: Asked[] = []
  readonly dns: DnsServer
  policy: DnsPolicy | undefined
  upstream: (a: Asked) => Reply = (a) =>
    this.answer(a, [{ type: 'A', name: a.packet.questions![0].name, ttl: 300, data: '93.184.216.34' }])
  /** IPv6 addresses that VMs use. */
  readonly speaking = new Set<string>()
  /** The family in which guests ask. */
  family: 4 | 6 = 4
  readonly #at: number

  constructor(options: Partial<typeof network> & { servers?: string[]; ipv4?: boolean; ipv6?: typeof ipv6 } = {}) {
    this.#at = this.host.arena.alloc(70000)
    this.dns = new DnsServer(
      {
        host: this.host,
        reply: (port, src, srcPort, dst, dstPort, bytes, len) => {
          assert.ok(src.equals(this.family === 4 ? SERVICES : SERVICES6))
          assert.equal(srcPort, 53)
          assert.equal(dst.family, this.family)
          this.told.push({ port, to: `${dst}:${dstPort}`, bytes: bytes.slice(0, len) })
        },
        drop: (_port, reason) => this.drops.push(reason),
        ref: (index) => index,
        policy: (port, name) => this.policy?.(port, name),
        speaks: (a) => this.speaking.has(`${a}`),
      },
      { ...network, ...options },
    )
    this.dns.setServers(options.servers ?? ['10.0.0.53'])
    this.dns.bind(1, 'web', ['192.168.100.10'])
    this.dns.bind(2, 'db', ['192.168.100.11'])
  }

  answer(a: Asked, answers: Packet['answers'], extra: Partial<Packet> & { rcode?: number } = {}): Packet {
    return {
      type: 'response',
      id: idOf(a.bytes),
      flags: (extra.flags ?? dnsPacket.RECURSION_DESIRED | dnsPacket.RECURSION_AVAILABLE) | (extra.rcode ?? 0),
      questions: a.packet.questions,
      answers,
      authorities: extra.authorities,
      additionals: extra.additionals,
    }
  }

  /** A datagram from a guest; what came back at once, or after upstream has spoken. */
  send(bytes: Uint8Array, port = 1, srcPort = 40000): Uint8Array | undefined {
    const before = this.told.length
    this.host.arena.bytes.set(bytes, this.#at)
    const four = this.family === 4
    const src = parseIp(four ? `192.168.100.${10 + port - 1}` : `fd12:3456:789a:1::${10 + port - 1}`)
    const dst = four ? SERVICES : SERVICES6
    this.dns.receive({ port, off: this.#at, len: bytes.length, src, srcPort, dst, dstPort: 53 })
    this.settle()
    return this.told[before]?.bytes
  }

  ask(q: Question | string, port = 1): DecodedPacket & { rcode: string } {
    const b = this.send(query(typeof q === 'string' ? { name: q } : q), port)
    assert.ok(b !== undefined, 'no answer')
    return dnsPacket.decode(Buffer.from(b)) as DecodedPacket & { rcode: string }
  }

  /** Let upstream answer everything it has been asked. */
  settle(): void {
    for (let turn = 0; turn < 50; turn++) {
      let worked = this.#serve()
      const before = this.host.calls
      this.host.deliver(this.dns)
      worked ||= this.host.calls !== before
      if (!worked) return
    }
    assert.fail('it never settles')
  }

  #serve(): boolean {
    let worked = false
    for (const sock of this.host.open()) {
      if (sock.kind === 'udp')
        for (const d of sock.sent.splice(0)) {
          worked = true
          this.#respond(sock, d.bytes, false)
        }
      else if (sock.kind === 'tcp' && sock.outboxBytes > 2) {
        const b = this.host.tcpRead(sock.id)
        worked = true
        assert.equal((b[0] << 8) | b[1], b.length - 2)
        this.#respond(sock, b.subarray(2), true)
      }
    }
    return worked
  }

  #respond(sock: MemorySocket, bytes: Uint8Array, tcp: boolean): void {
    const a: Asked = { sock, server: sock.peer, tcp, bytes, packet: dnsPacket.decode(Buffer.from(bytes)) }
    this.asked.push(a)
    const r = this.upstream(a)
    if (r === undefined) return
    if (r === 'refuse') {
      if (tcp) this.host.fail(sock.id, 104)
      else this.host.report(sock.id, { type: 3, code: 3, errno: 111, from: sock.peer.replace(/:\d+$/, '') })
      return
    }
    this.inject(sock, r instanceof Uint8Array ? r : dnsPacket.encode(r), tcp)
  }

  /** Bytes from upstream on a socket. */
  inject(sock: MemorySocket, b: Uint8Array, tcp = false): void {
    if (sock.closed) return
    if (!tcp) this.host.arrive(sock.id, b)
    else this.host.tcpWrite(sock.id, Uint8Array.from([b.length >> 8, b.length & 255, ...b]))
  }

  /** Time passes in steps of a tick. */
  wait(ms: number, step = 100): void {
    for (let t = 0; t < ms; t += step) {
      this.host.advance(Math.min(step, ms - t))
      this.dns.tick(this.host.now())
      this.settle()
    }
  }
}
