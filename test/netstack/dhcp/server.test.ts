import assert from 'node:assert/strict'
import { beforeEach, describe, it } from 'node:test'
import fc from 'fast-check'
import { decode, encode, type Options, optionCodes, type Packet, type PacketInit } from '#dhcp-packet'
import { Arena } from '../../../src/netstack/arena.ts'
import type { DhcpNetwork } from '../../../src/netstack/dhcp/options.ts'
import { DhcpServer } from '../../../src/netstack/dhcp/server.ts'
import type { Host, NetstackEvent } from '../../../src/netstack/host.ts'
import { Address, parseIp } from '../../../src/netstack/wire/address.ts'

const ANY = new Address().set4(0)
const EVERYBODY = parseIp('255.255.255.255')

const network = {
  subnet: '192.168.100.0/24',
  gateway: '192.168.100.1',
  services: '192.168.100.2',
  domain: 'noid.internal',
  mtu: 1500,
  leaseSeconds: 43200,
}
const mac = '02:00:00:00:00:09'
const ADDRESS = '192.168.100.10'

interface Answer {
  readonly port: number
  readonly dst: string
  readonly mac: string
  readonly p: Packet
}

/** A server on a clock of its own; `ask` plays a client on port 1 and returns the one answer, if any. */
class World {
  clock = 1000
  readonly answers: Answer[] = []
  readonly drops: string[] = []
  readonly events: NetstackEvent[] = []
  readonly arena = new Arena(new ArrayBuffer(65536))
  readonly server: DhcpServer

  constructor(options: Partial<DhcpNetwork> = {}) {
    const host = {
      arena: this.arena,
      now: () => this.clock,
      notify: (e: NetstackEvent) => this.events.push(e),
    } as unknown as Host
    this.server = new DhcpServer(
      host,
      (port, src, srcPort, dst, dstPort, bytes, len, to) => {
        assert.equal(src.toString(), network.services)
        assert.deepEqual([srcPort, dstPort], [67, 68])
        const hex = ((to!.hi * 2 ** 32 + (to!.lo >>> 0)) as number).toString(16).padStart(12, '0')
        this.answers.push({
          port,
          dst: dst.toString(),
          mac: hex.match(/../g)!.join(':'),
          p: decode(bytes.subarray(0, len)),
        })
      },
      (_port, reason) => this.drops.push(reason),
      { ...network, ...options },
    )
    this.server.bind(1, { name: 'web', mac, address: ADDRESS, bound: false })
  }

  bytes(b: Uint8Array, port = 1): Answer | undefined {
    this.arena.bytes.set(b, 128)
    const before = this.answers.length
    this.server.receive({ port, off: 128, len: b.length, src: ANY, srcPort: 68, dst: EVERYBODY, dstPort: 67 })
    assert.ok(this.answers.length <= before + 1)
    return this.answers[before]
  }

  ask(options: Options, head: Partial<PacketInit> = {}, port = 1): Answer | undefined {
    return this.bytes(encode({ op: 'request', xid: 77, chaddr: mac, ...head, options }), port)
  }

  /** Four-way handshake. */
  lease(): void {
    this.ask({ messageType: 'DISCOVER' })
    assert.equal(
      this.ask({ messageType: 'REQUEST', serverId: network.services, requestedAddress: ADDRESS })?.p.options
        .messageType,
      'ACK',
    )
  }

  get state(): string {
    return this.server.rows()[0].state
  }
}

let w: World
beforeEach(() => {
  w = new World()
})

describe('a client that begins', () => {
  it('is offered its port’s address with everything the network says', () => {
    const a = w.ask({ messageType: 'DISCOVER' })!
    assert.equal(a.dst, ADDRESS)
    assert.equal(a.mac, mac)
    assert.equal(a.p.yiaddr, ADDRESS)
    assert.equal(a.p.xid, 77)
    assert.deepEqual(a.p.options, {
      messageType: 'OFFER',
      serverId: '192.168.100.2',
      leaseTime: 43200,
      renewalTime: 21600,
      rebindingTime: 37800,
      subnetMask: '255.255.255.0',
      routers: ['192.168.100.1'],
      dnsServers: ['192.168.100.2'],
      hostname: 'web',
      domainName: 'noid.internal',
      searchDomains: ['noid.internal'],
      mtu: 1500,
      broadcastAddress: '192.168.100.255',
    })
    assert.equal(w.state, 'offered')
  })

  it('holds the lease after its REQUEST, and the store hears of it', () => {
    w.lease()
    assert.deepEqual(w.server.rows(), [
      { vm: 'web', address: ADDRESS, mac, hostname: '', state: 'bound', expiresInMs: 43200_000 },
    ])
    assert.deepEqual(w.events, [{ type: 'lease', port: 1, address: ADDRESS, state: 'bound', expiresInMs: 43200_000 }])
  })

  it('is answered by broadcast when it asks for that', () => {
    const a = w.ask({ messageType: 'DISCOVER' }, { broadcast: true })!
    assert.equal(a.dst, '255.255.255.255')
    assert.equal(a.mac, 'ff:ff:ff:ff:ff:ff')
    assert.equal(a.p.broadcast, true)
  })

  it('gets the same address with another MAC, and is answered at that MAC', () => {
    w.lease()
    const a = w.ask({ messageType: 'DISCOVER' }, { chaddr: '02:00:00:00:00:77' })!
    assert.equal(a.p.yiaddr, ADDRESS)
    assert.equal(a.mac, '02:00:00:00:00:77')
    assert.equal(w.state, 'bound', 'what it holds stays until it asks for it again')
  })

  it('gets what it asks for and no more; classless routes include the default route', () => {
    const codes = [optionCodes.classlessRoutes, optionCodes.mtu, 249]
    const { options } = w.ask({ messageType: 'DISCOVER', parameterRequestList: codes })!.p
    assert.deepEqual(options.classlessRoutes, [{ to: '0.0.0.0/0', via: '192.168.100.1' }])
    assert.deepEqual(options.microsoftRoutes, options.classlessRoutes)
    assert.equal(options.mtu, 1500)
    assert.equal(options.routers, undefined)
    assert.equal(options.subnetMask, '255.255.255.0')
  })

  it('hears of more search domains and routes where the network has them', () => {
    w = new World({
      search: ['noid.internal', 'corp.example'],
      routes: [{ to: '10.9.0.0/16', via: '192.168.100.254' }],
    })
    const { options } = w.ask({ messageType: 'DISCOVER', parameterRequestList: [119, 121] })!.p
    assert.deepEqual(options.searchDomains, ['noid.internal', 'corp.example'])
    assert.deepEqual(options.classlessRoutes, [
      { to: '0.0.0.0/0', via: '192.168.100.1' },
      { to: '10.9.0.0/16', via: '192.168.100.254' },
    ])
  })

  it('may commit rapidly (RFC 4039)', () => {
    const a = w.ask({ messageType: 'DISCOVER', rapidCommit: true })!
    assert.equal(a.p.options.messageType, 'ACK')
    assert.equal(a.p.options.rapidCommit, true)
    assert.equal(w.state, 'bound')
  })

  it('has its client id echoed (RFC 6842) and its FQDN set by the server (RFC 4702)', () => {
    const clientId = Uint8Array.of(255, 1, 2, 3, 4)
    const fqdn = { serverUpdates: false, override: false, noServerUpdates: true, canonical: true, name: 'mine' }
    const { options } = w.ask({ messageType: 'DISCOVER', clientId, clientFqdn: fqdn })!.p
    assert.deepEqual(options.clientId, clientId)
    assert.equal(options.clientFqdn?.name, 'web.noid.internal.')
    assert.equal(options.clientFqdn?.override, true)
  })

  it('forgets an offer that is not taken up', () => {
    w.ask({ messageType: 'DISCOVER' })
    w.server.tick((w.clock += 60_000))
    assert.equal(w.state, 'reserved')
    assert.deepEqual(w.events, [])
  })
})

describe('REQUEST in its four states', () => {
  const nak = (a: Answer | undefined): void => {
    assert.equal(a?.p.options.messageType, 'NAK')
    assert.equal(a?.dst, '255.255.255.255')
    assert.equal(a?.mac, 'ff:ff:ff:ff:ff:ff')
    assert.equal(a?.p.yiaddr, '0.0.0.0')
    assert.equal(a?.p.options.leaseTime, undefined)
  }

  it('SELECTING: ours is acknowledged, a wrong address is refused, another server’s offer is left alone', () => {
    w.ask({ messageType: 'DISCOVER' })
    nak(w.ask({ messageType: 'REQUEST', serverId: network.services, requestedAddress: '192.168.100.11' }))
    assert.equal(w.ask({ messageType: 'REQUEST', serverId: '192.168.100.99', requestedAddress: ADDRESS }), undefined)
    assert.equal(w.state, 'reserved')
    assert.deepEqual(w.drops, ['dhcp-other-server'])
    assert.ok(w.ask({ messageType: 'REQUEST', serverId: network.services, requestedAddress: ADDRESS }))
  })

  it('INIT-REBOOT: its own address is confirmed at once, one of another network refused', () => {
    assert.equal(w.ask({ messageType: 'REQUEST', requestedAddress: ADDRESS })?.p.options.messageType, 'ACK')
    nak(w.ask({ messageType: 'REQUEST', requestedAddress: '10.0.0.5' }))
  })

  it('RENEWING and REBINDING: another term, answered at ciaddr also when it asks for broadcast', () => {
    w.lease()
    w.clock += 21600_000
    const a = w.ask({ messageType: 'REQUEST' }, { ciaddr: ADDRESS, broadcast: true })!
    assert.equal(a.p.options.messageType, 'ACK')
    assert.equal(a.p.ciaddr, ADDRESS)
    assert.equal(a.dst, ADDRESS)
    assert.equal(w.server.rows()[0].expiresInMs, 43200_000)
    nak(w.ask({ messageType: 'REQUEST' }, { ciaddr: '192.168.100.44' }))
  })

  it('with neither address is malformed', () => {
    assert.equal(w.ask({ messageType: 'REQUEST' }), undefined)
    assert.equal(w.ask({ messageType: 'REQUEST', serverId: network.services }), undefined)
    assert.deepEqual(w.drops, ['dhcp-malformed', 'dhcp-malformed'])
  })

  it('after the control plane gave the port another address is refused, and the new one offered', () => {
    w.lease()
    w.server.bind(1, { name: 'web', mac, address: '192.168.100.77', bound: false })
    nak(w.ask({ messageType: 'REQUEST' }, { ciaddr: ADDRESS }))
    assert.equal(w.ask({ messageType: 'DISCOVER' })?.p.yiaddr, '192.168.100.77')
  })
})

describe('the end of a lease', () => {
  it('RELEASE gives it back, and the address stays the port’s', () => {
    w.lease()
    w.clock += 5000
    assert.equal(w.ask({ messageType: 'RELEASE', serverId: network.services }, { ciaddr: ADDRESS }), undefined)
    assert.equal(w.state, 'reserved')
    assert.equal(w.events.length, 2)
    assert.equal(w.ask({ messageType: 'DISCOVER' })?.p.yiaddr, ADDRESS)
  })

  it('time ends it after twelve hours, which the store hears', () => {
    w.lease()
    w.server.tick((w.clock += 43199_999))
    assert.equal(w.state, 'bound')
    w.server.tick((w.clock += 1))
    assert.equal(w.state, 'expired')
    assert.deepEqual(w.events.at(-1), { type: 'lease', port: 1, address: ADDRESS, state: 'expired', expiresInMs: null })
    w.lease()
    assert.equal(w.state, 'bound')
  })

  it('DECLINE is reported to people, and the address is offered again after ten seconds', () => {
    w.lease()
    w.ask({ messageType: 'DECLINE', serverId: network.services, requestedAddress: ADDRESS })
    assert.equal(w.state, 'declined')
    assert.equal(w.events.filter((e) => e.type === 'warning').length, 1)
    assert.equal(w.ask({ messageType: 'DISCOVER' }), undefined)
    w.clock += 10_000
    assert.ok(w.ask({ messageType: 'DISCOVER' }))
    assert.deepEqual(w.drops, ['dhcp-declined'])
  })

  it('of an address that is not its own changes nothing', () => {
    w.lease()
    w.ask({ messageType: 'RELEASE', serverId: network.services }, { ciaddr: '192.168.100.11' })
    w.ask({ messageType: 'DECLINE', serverId: network.services, requestedAddress: '192.168.100.11' })
    assert.equal(w.state, 'bound')
    assert.deepEqual(w.drops, ['dhcp-not-its-own', 'dhcp-not-its-own'])
  })
})

it('INFORM is told the parameters, without an address or times', () => {
  const a = w.ask({ messageType: 'INFORM' }, { ciaddr: ADDRESS })!
  assert.equal(a.dst, ADDRESS)
  assert.equal(a.p.options.messageType, 'ACK')
  assert.equal(a.p.yiaddr, '0.0.0.0')
  assert.equal(a.p.options.leaseTime, undefined)
  assert.deepEqual(a.p.options.dnsServers, ['192.168.100.2'])
  assert.equal(w.state, 'reserved')
})

it('a lease is kept through a restart of the data plane', () => {
  w.server.bind(2, { name: 'db', mac, address: '192.168.100.12', bound: true })
  assert.equal(w.server.rows()[1].state, 'bound')
  w.server.bind(2, { name: 'db', mac, address: '192.168.100.12', bound: false })
  assert.equal(w.server.rows()[1].state, 'bound', 'a repeated bind changes nothing')
  w.server.unbind(2)
  assert.equal(w.server.rows().length, 1)
})

describe('what is not answered', () => {
  it('is counted by reason', () => {
    w.bytes(new Uint8Array(10))
    w.ask({ messageType: 'DISCOVER' }, { giaddr: '192.168.100.1' })
    w.ask({ messageType: 'DISCOVER' }, { op: 'reply' })
    w.ask({ messageType: 'DISCOVER' }, { chaddr: 'ff:ff:ff:ff:ff:ff' })
    w.ask({ messageType: 'OFFER' })
    w.ask({})
    w.ask({ messageType: 'DISCOVER' }, {}, 9)
    assert.deepEqual(w.drops, [
      'dhcp-malformed',
      'dhcp-relayed',
      'dhcp-malformed',
      'dhcp-malformed',
      'dhcp-malformed',
      'dhcp-malformed',
      'dhcp-unknown-port',
    ])
    assert.equal(w.answers.length, 0)
  })

  it('a flood is rationed, without harm to another port', () => {
    w.server.bind(2, { name: 'db', mac, address: '192.168.100.12', bound: false })
    for (let i = 0; i < 1000; i++) w.ask({ messageType: 'REQUEST', requestedAddress: ADDRESS })
    assert.equal(w.answers.length, 30)
    assert.equal(w.events.length, 1, 'and the store is not kept busy')
    assert.ok(w.ask({ messageType: 'DISCOVER' }, {}, 2))
    w.clock += 1000
    assert.ok(w.ask({ messageType: 'DISCOVER' }))
  })

  it('a client that changes its mind without end: the store hears of it once a second, and what came of it', () => {
    const release = () => w.ask({ messageType: 'RELEASE', serverId: network.services }, { ciaddr: ADDRESS })
    const leases = () => w.events.flatMap((e) => (e.type === 'lease' ? [e] : []))
    for (let s = 0; s < 60; s++) {
      for (let k = 0; k < 5; k++) {
        w.ask({ messageType: 'REQUEST', requestedAddress: ADDRESS })
        release()
      }
      w.server.tick((w.clock += 1000))
    }
    assert.ok(leases().length <= 61, `${leases().length}`)
    assert.equal(w.state, 'reserved')
    assert.equal(leases().at(-1)?.state, 'reserved')
    // What is as it was told needs no telling.
    w.clock += 1000
    w.lease()
    release()
    w.ask({ messageType: 'REQUEST', requestedAddress: ADDRESS })
    const before = leases().length
    assert.equal(leases().at(-1)?.state, 'bound')
    w.server.tick((w.clock += 1000))
    assert.equal(leases().length, before)
  })

  it('a client that declines without end: people are told once a minute', () => {
    const decline = () => w.ask({ messageType: 'DECLINE', serverId: network.services, requestedAddress: ADDRESS })
    for (let s = 0; s < 59; s++) {
      for (let k = 0; k < 10; k++) decline()
      w.server.tick((w.clock += 1000))
    }
    const warnings = () => w.events.filter((e) => e.type === 'warning').length
    assert.equal(warnings(), 1)
    w.clock += 1000
    decline()
    assert.equal(warnings(), 2)
  })

  it('an answer longer than the client can take is made to fit, or counted', () => {
    w = new World({ domain: `${'d'.repeat(60)}.${'e'.repeat(60)}.internal` })
    const clientId = new Uint8Array(100)
    const a = w.ask({ messageType: 'DISCOVER', clientId, maxMessageSize: 576 })!
    assert.equal(a.p.options.domainName?.length, 130)
    w.ask({ messageType: 'DISCOVER', clientId: new Uint8Array(600) })
    assert.deepEqual(w.drops, ['dhcp-too-long'])
  })

  it('a client’s host name cannot speak to a terminal', () => {
    w.ask({ messageType: 'DISCOVER', hostname: '\x1b[31mroot' })
    assert.equal(w.server.rows()[0].hostname, '?[31mroot')
  })
})

it('nothing that arrives throws, or leaves a state that is none', () => {
  const byte = fc.integer({ min: 0, max: 255 })
  const types = fc.constantFrom('DISCOVER', 'REQUEST', 'DECLINE', 'RELEASE', 'INFORM', 'OFFER', undefined)
  const some = fc.constantFrom(ADDRESS, network.services, '0.0.0.0', '255.255.255.255', '10.0.0.1', undefined)
  const step = fc.record({
    wait: fc.integer({ min: 0, max: 40_000_000 }),
    messageType: types,
    requestedAddress: some,
    serverId: some,
    ciaddr: some,
    broadcast: fc.boolean(),
    noise: fc.array(fc.tuple(fc.nat(299), byte), { maxLength: 3 }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), (steps) => {
      const world = new World()
      for (const s of steps) {
        world.clock += s.wait
        world.server.tick(world.clock)
        const { messageType, requestedAddress, serverId } = s
        const b = encode({
          op: 'request',
          chaddr: mac,
          ciaddr: s.ciaddr,
          broadcast: s.broadcast,
          options: { messageType, requestedAddress, serverId },
        } as PacketInit)
        for (const [at, value] of s.noise) b[at] = value
        const a = world.bytes(b)
        if (a !== undefined && a.p.options.messageType !== 'NAK') assert.ok(['0.0.0.0', ADDRESS].includes(a.p.yiaddr))
        assert.match(world.state, /^(reserved|offered|bound|expired|declined)$/)
        assert.equal(world.server.rows()[0].expiresInMs !== null, world.state === 'bound')
      }
    }),
    { seed: 7, numRuns: 500 },
  )
})
