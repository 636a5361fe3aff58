/** The client's state machine against a model of time: no socket, no clock. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { decode, encode, type Packet, type PacketInit } from '#dhcp-packet'
import { buildFrame, parseFrame } from '../../src/runtimes/dhcp-client/frame.ts'
import { type Lease, renewAt } from '../../src/runtimes/dhcp-client/lease.ts'
import {
  type ClientOptions,
  DhcpClient,
  leaseOf,
  type Outgoing,
  prefixOf,
} from '../../src/runtimes/dhcp-client/machine.ts'

const MAC = '02:00:00:00:00:11'
const SERVER_MAC = '02:00:00:00:00:02'
const SERVER = '192.168.77.2'

function random(seed = 1): () => number {
  let s = seed
  return () => {
    s = (s * 1103515245 + 12345) & 0x7fffffff
    return s / 0x80000000
  }
}

const client = (o: Partial<ClientOptions> = {}, now = 0) =>
  new DhcpClient({ mac: MAC, hostname: 'web', begin: 'init', random: random(), ...o }, now)

/** What a server would decode. */
const seen = (out: Outgoing | undefined): Packet => decode(encode(out?.packet as PacketInit))

function answer(to: Packet, messageType: 'OFFER' | 'ACK' | 'NAK', extra: Partial<PacketInit> = {}): Packet {
  const { options, ...rest } = extra
  return decode(
    encode({
      op: 'reply',
      xid: to.xid,
      chaddr: to.chaddr,
      yiaddr: messageType === 'NAK' ? '0.0.0.0' : '192.168.77.100',
      ...rest,
      options: { messageType, serverId: SERVER, ...(messageType === 'NAK' ? {} : { leaseTime: 3600 }), ...options },
    }),
  )
}

const old: Lease = {
  address: '192.168.77.123',
  prefix: 24,
  server: SERVER,
  serverMac: SERVER_MAC,
  routes: [],
  dns: [],
  search: [],
  leaseMs: 3_600_000,
  t1Ms: 1_800_000,
  t2Ms: 3_150_000,
  boundAt: 0,
}

/** Let time pass until the client sends, and give what it sent. */
function nextSend(c: DhcpClient): { at: number; packet: Packet; out: Outgoing } {
  const at = c.deadline
  const out = c.due(at)
  assert.ok(out)
  return { at, packet: seen(out), out }
}

describe('DHCP client', () => {
  it('goes from INIT to BOUND by the four messages', () => {
    const c = client()
    const discover = nextSend(c).packet
    assert.equal(discover.options.messageType, 'DISCOVER')
    assert.equal(discover.options.hostname, 'web')
    assert.deepEqual([...(discover.options.clientId ?? [])], [1, 2, 0, 0, 0, 0, 0x11])
    assert.ok(discover.options.parameterRequestList?.includes(121))
    c.receive(answer(discover, 'OFFER'), SERVER_MAC, 1, 1000)
    const request = nextSend(c).packet
    assert.equal(request.options.messageType, 'REQUEST')
    assert.equal(request.options.requestedAddress, '192.168.77.100')
    assert.equal(request.options.serverId, SERVER)
    assert.equal(request.xid, discover.xid)
    c.receive(answer(request, 'ACK', { options: { subnetMask: '255.255.255.0' } }), SERVER_MAC, 2, 1000)
    assert.equal(c.state, 'bound')
    assert.equal(c.lease?.address, '192.168.77.100')
    assert.equal(c.lease?.leaseMs, 3_600_000)
    assert.equal(c.lease?.t1Ms, 1_800_000)
    assert.equal(c.lease?.t2Ms, 3_150_000)
    assert.equal(c.lease?.boundAt, 1000)
    assert.equal(c.due(1e9), undefined)
  })

  it('repeats with doubling, randomised delays, up to 16 s', () => {
    const c = client()
    const at = Array.from({ length: 10 }, () => nextSend(c).at)
    for (let i = 1; i < at.length; i++) {
      const delay = at[i]! - at[i - 1]!
      const base = Math.min(16_000, 250 * 2 ** (i - 1))
      assert.ok(delay >= base * 0.8 && delay <= base * 1.2, `${delay} after ${i}`)
    }
  })

  it('counts secs from the beginning of the exchange', () => {
    const c = client()
    let last = nextSend(c)
    for (let i = 0; i < 6; i++) last = nextSend(c)
    assert.equal(last.packet.secs, Math.floor(last.at / 1000))
  })

  it('begins anew, with another xid, when requests stay unanswered', () => {
    const c = client()
    const first = nextSend(c).packet
    c.receive(answer(first, 'OFFER'), SERVER_MAC, 1, 0)
    for (let i = 0; i < 5; i++) assert.equal(nextSend(c).packet.options.messageType, 'REQUEST')
    const again = nextSend(c).packet
    assert.equal(again.options.messageType, 'DISCOVER')
    assert.notEqual(again.xid, first.xid)
  })

  it('asks for its old address in INIT-REBOOT, without a server identifier (RFC 2131 §4.3.2)', () => {
    const c = client({ lease: old, begin: 'reboot' })
    const { packet } = nextSend(c)
    assert.equal(packet.options.messageType, 'REQUEST')
    assert.equal(packet.options.requestedAddress, old.address)
    assert.equal(packet.options.serverId, undefined)
    assert.equal(packet.ciaddr, '0.0.0.0')
    c.receive(answer(packet, 'ACK', { yiaddr: old.address }), SERVER_MAC, 1, 0)
    assert.equal(c.lease?.address, old.address)
  })

  it('takes NAK as an order to begin anew, but not at once', () => {
    const c = client({ lease: old, begin: 'reboot' })
    const { packet, at } = nextSend(c)
    c.receive(answer(packet, 'NAK'), SERVER_MAC, at + 1, 0)
    assert.equal(c.state, 'selecting')
    assert.equal(c.due(at + 2), undefined)
    const discover = nextSend(c)
    assert.ok(discover.at >= at + 500)
    assert.equal(discover.packet.options.messageType, 'DISCOVER')
  })

  it('discovers when nobody answers INIT-REBOOT', () => {
    const c = client({ lease: old, begin: 'reboot' })
    for (let i = 0; i < 4; i++) nextSend(c)
    assert.equal(nextSend(c).packet.options.messageType, 'DISCOVER')
  })

  it('renews by unicast with ciaddr, and rebinds by broadcast', () => {
    const renew = nextSend(client({ lease: old, begin: 'renew' }))
    assert.deepEqual(renew.out.to, { address: SERVER, mac: SERVER_MAC, from: old.address })
    assert.equal(renew.packet.ciaddr, old.address)
    assert.equal(renew.packet.options.requestedAddress, undefined)
    assert.equal(renew.packet.options.serverId, undefined)
    const rebind = nextSend(client({ lease: old, begin: 'rebind' }))
    assert.equal(rebind.out.to, 'broadcast')
    assert.equal(rebind.packet.ciaddr, old.address)
  })

  it('ignores answers to others: another xid, another hardware address, another server', () => {
    const c = client()
    const discover = nextSend(c).packet
    c.receive({ ...answer(discover, 'OFFER'), xid: (discover.xid + 1) >>> 0 }, SERVER_MAC, 1, 0)
    c.receive({ ...answer(discover, 'OFFER'), chaddr: '02:00:00:00:00:12' }, SERVER_MAC, 1, 0)
    c.receive({ ...answer(discover, 'OFFER'), op: 'request' }, SERVER_MAC, 1, 0)
    c.receive(answer(discover, 'ACK'), SERVER_MAC, 1, 0)
    assert.equal(c.state, 'selecting')
    c.receive(answer(discover, 'OFFER'), SERVER_MAC, 1, 0)
    const request = nextSend(c).packet
    c.receive(answer(request, 'ACK', { options: { serverId: '192.168.77.9', leaseTime: 1 } }), SERVER_MAC, 2, 0)
    assert.equal(c.state, 'requesting')
  })

  it('never throws and never binds by random packets', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 600 }), { maxLength: 20 }), (frames) => {
        const c = client()
        c.due(0)
        for (const f of frames) {
          const d = parseFrame(Buffer.from(f))
          if (d === undefined) continue
          try {
            c.receive(decode(d.payload), d.sourceMac, 1, 0)
          } catch (e) {
            assert.equal((e as Error).name, 'DhcpError')
          }
        }
        assert.equal(c.lease, undefined)
      }),
    )
  })
})

describe('lease', () => {
  const ack = (options: object) => leaseOf(answer(seen(client().due(0)), 'ACK', { options } as never), SERVER_MAC, 5)

  it('prefers classless routes to the router option (RFC 3442)', () => {
    const l = ack({
      routers: ['192.168.77.1'],
      classlessRoutes: [
        { to: '0.0.0.0/0', via: '192.168.77.9' },
        { to: '10.0.0.0/8', via: '0.0.0.0' },
      ],
    })
    assert.deepEqual(l.routes, [
      { destination: '0.0.0.0', prefix: 0, gateway: '192.168.77.9' },
      { destination: '10.0.0.0', prefix: 8, gateway: undefined },
    ])
    assert.deepEqual(ack({ routers: ['192.168.77.1'] }).routes, [
      { destination: '0.0.0.0', prefix: 0, gateway: '192.168.77.1' },
    ])
  })

  it('knows a lease for ever, and does not believe times that contradict each other', () => {
    assert.equal(ack({ leaseTime: 0xffffffff }).leaseMs, null)
    assert.equal(renewAt(ack({ leaseTime: 0xffffffff }), 0), null)
    const l = ack({ leaseTime: 100, renewalTime: 200, rebindingTime: 50 })
    assert.deepEqual([l.t1Ms, l.t2Ms], [50_000, 87_000])
  })

  it('searches where option 119 says, else in the domain', () => {
    assert.deepEqual(ack({ searchDomains: ['a.b', 'c'], domainName: 'd' }).search, ['a.b', 'c'])
    assert.deepEqual(ack({ domainName: 'noid.internal' }).search, ['noid.internal'])
  })

  it('reads masks', () => {
    assert.equal(prefixOf('255.255.255.0'), 24)
    assert.equal(prefixOf('255.255.0.0'), 16)
    assert.equal(prefixOf('255.255.255.255'), 32)
    assert.equal(prefixOf('255.0.255.0'), 24)
    assert.equal(prefixOf(undefined), 24)
  })

  it('is tried at T1, then more and more often, and goes on after its end', () => {
    assert.equal(renewAt(old, 0), 1_800_000)
    let l = { ...old, triedAt: 1_800_000 }
    const tries: number[] = []
    for (let now = 0; now < 3_800_000; ) {
      now = renewAt(l, now) as number
      tries.push(now)
      l = { ...l, triedAt: now }
    }
    for (let i = 1; i < tries.length; i++) assert.ok(tries[i]! - tries[i - 1]! >= 60_000)
    assert.ok(tries.some((t) => t < 3_150_000) && tries.some((t) => t > 3_600_000))
    assert.ok(tries.length > 8 && tries.length < 40, String(tries.length))
  })
})

describe('frames of the client', () => {
  it('are what a server parses, and the other way round', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 1400 }), (payload) => {
        const f = buildFrame({ sourceMac: MAC, targetMac: SERVER_MAC, source: '10.0.0.1', target: '10.0.0.2' }, payload)
        // To the client's port they are somebody else's.
        assert.equal(parseFrame(f), undefined)
        f.writeUInt16BE(67, 34)
        f.writeUInt16BE(68, 36)
        assert.deepEqual(parseFrame(f), { sourceMac: MAC, payload: Buffer.from(payload) })
      }),
    )
  })

  it('are refused with a broken header, as fragments, or cut short', () => {
    const good = buildFrame(
      { sourceMac: MAC, targetMac: MAC, source: '1.2.3.4', target: '1.2.3.5' },
      new Uint8Array(300),
    )
    good.writeUInt16BE(67, 34)
    good.writeUInt16BE(68, 36)
    assert.ok(parseFrame(good))
    for (const [at, value] of [
      [12, 0x86],
      [14, 0x46],
      [20, 0x20],
      [23, 6],
      [24, 1],
      [38, 0xff],
    ] as const) {
      const bad = Buffer.from(good)
      bad[at] = value
      assert.equal(parseFrame(bad), undefined, `byte ${at}`)
    }
    for (let n = 0; n < good.length; n++) assert.equal(parseFrame(good.subarray(0, n)), undefined)
  })
})
