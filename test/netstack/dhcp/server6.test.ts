import assert from 'node:assert/strict'
import { beforeEach, describe, it } from 'node:test'
import fc from 'fast-check'
import {
  decode,
  duidLinkLayer,
  encode,
  type Ia,
  type MessageType6,
  type Options6,
  optionCodes6,
  type Packet6,
  statusCodes,
} from '#dhcp-packet/v6'
import { Arena } from '../../../src/netstack/arena.ts'
import { type Dhcp6Network, Dhcp6Server } from '../../../src/netstack/dhcp/server6.ts'
import type { Host, NetstackEvent } from '../../../src/netstack/host.ts'
import { parseIp } from '../../../src/netstack/wire/address.ts'

const network: Dhcp6Network = {
  services: 'fd12:3456:789a:1::2',
  mac: '02:6e:c0:a8:64:01',
  linkLocal: 'fe80::6e:c0ff:fea8:6401',
  domain: 'noid.internal',
  mtu: 1500,
  leaseSeconds: 1000,
}
const CLIENT = parseIp('fe80::ff:fe00:9')
const SERVERS = parseIp('ff02::1:2')
const ADDRESS = 'fd12:3456:789a:1::10'
const OTHER = 'fd12:3456:789a:1::99'
const clientId = Uint8Array.of(0, 3, 0, 1, 2, 0, 0, 0, 0, 9)
const serverId = duidLinkLayer(network.mac)

/** A server on a clock of its own; `ask` plays a client on port 1 and returns the one answer, if any. */
class World {
  clock = 1000
  readonly answers: Packet6[] = []
  readonly drops: string[] = []
  readonly events: NetstackEvent[] = []
  readonly arena = new Arena(new ArrayBuffer(65536 + 256))
  readonly server: Dhcp6Server

  constructor(options: Partial<Dhcp6Network> = {}) {
    const host = {
      arena: this.arena,
      now: () => this.clock,
      notify: (e: NetstackEvent) => this.events.push(e),
    } as unknown as Host
    this.server = new Dhcp6Server(
      host,
      (port, src, srcPort, dst, dstPort, bytes, len, mac) => {
        assert.equal(port, 1)
        assert.equal(src.toString(), network.linkLocal)
        assert.equal(dst.toString(), CLIENT.toString())
        assert.deepEqual([srcPort, dstPort, mac], [547, 546, undefined])
        assert.ok(len <= 1500 - 48)
        this.answers.push(decode(bytes.subarray(0, len)))
      },
      (_port, reason) => this.drops.push(reason),
      { ...network, ...options },
    )
    this.server.bind(1, { name: 'web', mac: '02:00:00:00:00:09', address: ADDRESS, bound: false })
  }

  bytes(b: Uint8Array, port = 1): Packet6 | undefined {
    this.arena.bytes.set(b, 128)
    const before = this.answers.length
    this.server.receive({ port, off: 128, len: b.length, src: CLIENT, srcPort: 546, dst: SERVERS, dstPort: 547 })
    assert.ok(this.answers.length <= before + 1)
    return this.answers[before]
  }

  ask(type: MessageType6, options: Options6 = {}, port = 1): Packet6 | undefined {
    return this.bytes(encode({ type, transactionId: 77, options: { clientId, ...options } }), port)
  }

  /** The full exchange. */
  lease(): void {
    this.ask('SOLICIT', { ia: [ia()] })
    assert.equal(this.ask('REQUEST', { serverId, ia: [ia(ADDRESS)] })?.options.ia?.[0]?.addresses[0]?.address, ADDRESS)
    assert.equal(this.state, 'bound')
  }

  get state(): string | undefined {
    return this.server.rows()[0]?.state
  }

  get drop(): string | undefined {
    return this.drops.at(-1)
  }
}

const ia = (...addresses: string[]): Ia => ({
  iaid: 5,
  t1: 0,
  t2: 0,
  addresses: addresses.map((address) => ({ address, preferred: 0, valid: 0 })),
})
const given = { iaid: 5, t1: 500, t2: 800, addresses: [{ address: ADDRESS, preferred: 1000, valid: 1000 }] }

let w: World
beforeEach(() => {
  w = new World()
})

describe('a client that begins', () => {
  it('is advertised its port’s address, with what the network says', () => {
    assert.deepEqual(w.ask('SOLICIT', { ia: [ia()] }), {
      type: 'ADVERTISE',
      transactionId: 77,
      options: {
        clientId,
        serverId,
        preference: 255,
        ia: [given],
        dnsServers: [network.services],
        searchDomains: ['noid.internal'],
      },
    })
    assert.equal(w.state, 'offered')
  })

  it('is given it when it asks, and the control plane hears of it', () => {
    w.lease()
    assert.deepEqual(w.events, [{ type: 'lease', port: 1, address: ADDRESS, state: 'bound', expiresInMs: 1_000_000 }])
  })

  it('needs two messages only, if it says so', () => {
    const a = w.ask('SOLICIT', { ia: [ia()], rapidCommit: true })
    assert.equal(a?.type, 'REPLY')
    assert.equal(a?.options.rapidCommit, true)
    assert.deepEqual(a?.options.ia, [given])
    assert.equal(w.state, 'bound')
  })

  it('is told what it asks for, and nothing else', () => {
    const a = w.ask('SOLICIT', { ia: [ia()], optionRequest: [optionCodes6.searchDomains, 31] })
    assert.deepEqual(a?.options.searchDomains, ['noid.internal'])
    assert.equal(a?.options.dnsServers, undefined)
    const fqdn = { serverUpdates: false, override: false, noServerUpdates: false, name: 'my machine' }
    const b = w.ask('SOLICIT', { ia: [ia()], clientFqdn: fqdn })
    assert.deepEqual(b?.options.clientFqdn, {
      ...fqdn,
      serverUpdates: true,
      override: true,
      name: 'web.noid.internal.',
    })
    assert.equal(w.server.rows()[0]?.hostname, 'my?machine')
  })

  it('gets one address, whatever it asks for', () => {
    const a = w.ask('SOLICIT', {
      ia: [
        { ...ia(OTHER), iaid: 1 },
        { ...ia(ADDRESS), iaid: 2 },
        { ...ia(), iaid: 3 },
      ],
      iaTemporary: [{ iaid: 4, addresses: [] }],
      iaPrefix: [{ iaid: 6, t1: 0, t2: 0, prefixes: [] }],
    })
    assert.deepEqual(
      a?.options.ia?.map((i) => [i.iaid, i.addresses.map((x) => x.address), i.status?.code]),
      [
        [1, [], statusCodes.noAddrsAvail],
        [2, [ADDRESS], undefined],
        [3, [], statusCodes.noAddrsAvail],
      ],
    )
    assert.equal(a?.options.iaTemporary?.[0]?.status?.code, statusCodes.noAddrsAvail)
    assert.equal(a?.options.iaPrefix?.[0]?.status?.code, statusCodes.noPrefixAvail)
  })

  it('only wants a prefix: told no, and nothing is leased', () => {
    const a = w.ask('SOLICIT', { iaPrefix: [{ iaid: 6, t1: 0, t2: 0, prefixes: [] }], rapidCommit: true })
    assert.equal(a?.type, 'ADVERTISE')
    assert.equal(w.state, 'reserved')
  })

  it('takes another server’s offer', () => {
    assert.equal(w.ask('REQUEST', { serverId: duidLinkLayer('02:00:00:00:00:77'), ia: [ia(ADDRESS)] }), undefined)
    assert.equal(w.drop, 'dhcp-other-server')
  })
})

describe('a client that holds an address', () => {
  beforeEach(() => w.lease())

  it('renews it with us, rebinds it with anybody', () => {
    w.clock += 500_000
    assert.deepEqual(w.ask('RENEW', { serverId, ia: [ia(ADDRESS)] })?.options.ia, [given])
    w.clock += 800_000
    assert.deepEqual(w.ask('REBIND', { ia: [ia(ADDRESS)] })?.options.ia, [given])
    w.clock += 1_000_001
    w.server.tick(w.clock)
    assert.equal(w.state, 'expired')
    assert.deepEqual(w.ask('REBIND', { ia: [ia(ADDRESS)] })?.options.ia, [given])
    assert.equal(w.state, 'bound')
  })

  it('has its address changed by the control plane: the old one is taken, the new one given', () => {
    w.server.bind(1, { name: 'web', mac: '02:00:00:00:00:09', address: OTHER, bound: false })
    assert.deepEqual(w.ask('RENEW', { serverId, ia: [ia(ADDRESS)] })?.options.ia?.[0]?.addresses, [
      { address: OTHER, preferred: 1000, valid: 1000 },
      { address: ADDRESS, preferred: 0, valid: 0 },
    ])
  })

  it('confirms where it is', () => {
    assert.equal(w.ask('CONFIRM', { ia: [ia(ADDRESS)] })?.options.status?.code, statusCodes.success)
    assert.equal(w.ask('CONFIRM', { ia: [ia(ADDRESS, OTHER)] })?.options.status?.code, statusCodes.notOnLink)
    assert.equal(w.ask('CONFIRM', { ia: [ia()] }), undefined)
    assert.equal(w.state, 'bound')
  })

  it('releases it; what is not its own is not known', () => {
    const a = w.ask('RELEASE', { serverId, ia: [{ ...ia(OTHER), iaid: 9 }] })
    assert.equal(a?.options.status?.code, statusCodes.success)
    assert.deepEqual([a?.options.ia?.[0]?.iaid, a?.options.ia?.[0]?.status?.code], [9, statusCodes.noBinding])
    assert.equal(w.state, 'bound')
    assert.equal(w.ask('RELEASE', { serverId, ia: [ia(ADDRESS)] })?.options.ia, undefined)
    assert.equal(w.state, 'reserved')
  })

  it('declines it: people are told, and it rests for ten seconds', () => {
    assert.equal(w.ask('DECLINE', { serverId, ia: [ia(ADDRESS)] })?.options.status?.code, statusCodes.success)
    assert.equal(w.state, 'declined')
    assert.match(JSON.stringify(w.events.at(-1)), /web says that its address fd12:3456:789a:1::10 is in use/)
    w.ask('DECLINE', { serverId, ia: [ia(ADDRESS)] })
    assert.equal(w.events.filter((e) => e.type === 'warning').length, 1)
    // It was told as bound a moment ago.
    w.server.tick(w.clock + 1000)
    assert.equal((w.events.at(-1) as { state?: string }).state, 'declined')
    assert.equal(w.ask('SOLICIT', { ia: [ia()] }), undefined)
    assert.equal(w.drop, 'dhcp-declined')
    w.clock += 10_000
    assert.equal(w.ask('SOLICIT', { ia: [ia()] })?.type, 'ADVERTISE')
  })

  it('was bound before the data plane was: it renews as if nothing had been', () => {
    w.server.bind(2, { name: 'db', mac: '02:00:00:00:00:0a', address: OTHER, bound: true })
    assert.equal(w.server.rows()[1]?.state, 'bound')
  })
})

it('a client that makes its own address asks for the rest', () => {
  const a = w.ask('INFORMATION-REQUEST', { optionRequest: [optionCodes6.dnsServers] })
  assert.deepEqual(a, {
    type: 'REPLY',
    transactionId: 77,
    options: { clientId, serverId, dnsServers: [network.services] },
  })
  // RFC 8415 §18.2.6: it may stay anonymous.
  const b = w.bytes(encode({ type: 'INFORMATION-REQUEST', transactionId: 1, options: {} }))
  assert.equal(b?.options.clientId, undefined)
  assert.equal(w.state, 'reserved')
})

describe('refused, and counted', () => {
  for (const [what, type, options, reason] of [
    ['a SOLICIT for one server', 'SOLICIT', { serverId, ia: [ia()] }, 'dhcp-malformed'],
    ['a REQUEST for none', 'REQUEST', { ia: [ia()] }, 'dhcp-malformed'],
    ['no client', 'RENEW', { clientId: undefined, serverId, ia: [ia(ADDRESS)] }, 'dhcp-malformed'],
    ['a server’s message', 'REPLY', { serverId }, 'dhcp-malformed'],
    ['a RECONFIGURE', 'RECONFIGURE', { serverId }, 'dhcp-malformed'],
    ['information about an address', 'INFORMATION-REQUEST', { ia: [ia()] }, 'dhcp-malformed'],
    ['a release to another', 'RELEASE', { serverId: clientId, ia: [ia(ADDRESS)] }, 'dhcp-other-server'],
  ] as const)
    it(what, () => {
      assert.equal(w.ask(type, options as Options6), undefined)
      assert.equal(w.drop, reason)
      assert.equal(w.state, 'reserved')
    })

  it('a relay, nothing at all, half a message', () => {
    for (const [bytes, reason] of [
      [Uint8Array.of(12, 0, ...new Array(32).fill(0)), 'dhcp-relayed'],
      [Uint8Array.of(13), 'dhcp-relayed'],
      [new Uint8Array(0), 'dhcp-malformed'],
      [Uint8Array.of(1, 0, 0, 1, 0), 'dhcp-malformed'],
    ] as const) {
      assert.equal(w.bytes(bytes), undefined)
      assert.equal(w.drop, reason)
    }
  })

  it('a port without an address, and one that has left', () => {
    assert.equal(w.ask('SOLICIT', { ia: [ia()] }, 7), undefined)
    assert.equal(w.drop, 'dhcp-unknown-port')
    w.server.unbind(1)
    assert.equal(w.ask('SOLICIT', { ia: [ia()] }), undefined)
  })

  it('a flood', () => {
    for (let i = 0; i < 40; i++) w.ask('SOLICIT', { ia: [ia()] })
    assert.equal(w.answers.length, 30)
    assert.equal(w.drop, 'dhcp-flood')
    w.clock += 1000
    assert.equal(w.ask('SOLICIT', { ia: [ia()] })?.type, 'ADVERTISE')
  })

  it('as many associations and addresses as fit into a datagram: the answer stays short', () => {
    const many = Array.from({ length: 60 }, (_, i) => ({ ...ia(...new Array(30).fill(OTHER)), iaid: i }))
    const a = w.ask('RENEW', { serverId, ia: many })
    // Longer than the link takes, it is not sent; shorter, it holds eight of eight.
    assert.ok(a === undefined ? w.drop === 'dhcp-too-long' : (a.options.ia?.length ?? 0) <= 8)
    const b = w.ask('RENEW', { serverId, ia: many.map((i) => ({ ...i, addresses: i.addresses.slice(0, 1) })) })
    assert.equal(b?.options.ia?.length, 8)
  })
})

it('any bytes: nothing throws, and each is answered or counted', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array({ maxLength: 300 }),
        fc
          .tuple(fc.constantFrom('SOLICIT', 'REQUEST', 'RENEW', 'DECLINE', 'CONFIRM'), fc.nat(200), fc.nat(255))
          .map(([type, at, value]) => {
            const options = { clientId, serverId, ia: [ia(ADDRESS)], optionRequest: [23, 24, 39] }
            const b = encode({ type: type as MessageType6, transactionId: 1, options })
            b[at % b.length] = value
            return b
          }),
      ),
      (b) => {
        w.clock += 1000
        const before = w.drops.length
        const a = w.bytes(b)
        assert.equal(w.drops.length - before, a === undefined ? 1 : 0)
      },
    ),
    { seed: 20261124, numRuns: 1000 },
  )
})
