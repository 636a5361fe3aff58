/** Datagrams of one flow that leave as one frame: what is joined comes apart the same, and what would not is left alone. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Burst } from '../../src/dataplane/burst.ts'
import { Arena, VNET } from '../../src/netstack/arena.ts'
import { SoftwareOffload, unfinished } from '../../src/netstack/switch/segment.ts'
import { put16 } from '../../src/netstack/wire/bytes.ts'
import { finish, pseudo4, sum } from '../../src/netstack/wire/checksum.ts'
import * as ethernet from '../../src/netstack/wire/ethernet.ts'
import * as ipv4 from '../../src/netstack/wire/ipv4.ts'
import * as udp from '../../src/netstack/wire/udp.ts'
import * as vnet from '../../src/netstack/wire/vnet.ts'
import { close, read, write } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET } from '../../src/sys/socket.ts'

const L3 = ethernet.ETHERNET
const L4 = L3 + ipv4.IPV4
const HEADERS = L4 + udp.UDP

interface Datagram {
  readonly payload: string
  readonly port?: number
  readonly ttl?: number
  readonly id?: number
  readonly fragment?: number
  /** The sender has computed the checksum itself. */
  readonly finished?: boolean
}

const SRC = 0x0a000001
const DST = 0x0a000002

function frame(d: Datagram): Uint8Array {
  const b = new Uint8Array(VNET + HEADERS + d.payload.length)
  const f = b.subarray(VNET)
  ethernet.setDst(f, 0, 0x0200, 2)
  ethernet.setSrc(f, 0, 0x0200, 1)
  ethernet.setType(f, 0, ethernet.TYPE_IPV4)
  const length = udp.UDP + d.payload.length
  ipv4.write(f, L3, ipv4.IPV4 + length, d.id ?? 0, d.fragment ?? ipv4.DF, d.ttl ?? 64, ipv4.UDP, SRC, DST)
  udp.write(f, L4, 5000, d.port ?? 6000, length)
  f.set(Buffer.from(d.payload, 'latin1'), HEADERS)
  if (d.finished) {
    put16(f, L4 + udp.CHECKSUM, finish(sum(f, L4, length, pseudo4(SRC, DST, ipv4.UDP, length))))
    vnet.clear(b, 0)
  } else {
    put16(f, L4 + udp.CHECKSUM, unfinished(SRC, DST, ipv4.UDP, length))
    vnet.write(b, 0, vnet.NEEDS_CSUM, vnet.GSO_NONE, HEADERS, 0, L4, udp.CHECKSUM)
  }
  return b
}

const arena = new Arena(new ArrayBuffer(8 << 20))
const base = addressOf(arena.bytes)
const ring = Burst.open(arena, base)
const software = new SoftwareOffload(arena)
const room = arena.slot()
const far: number[] = []
after(() => {
  for (const fd of far) close(fd)
})
const skip = ring === undefined && 'io_uring is not allowed here'

/** Frames that are read from one nic and forwarded to another in one burst: how many came out, and every datagram in them. */
function through(all: readonly Datagram[]): { frames: number; payloads: string[] } {
  const burst = ring as Burst
  const [into, from] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  const [to, out] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  far.push(into, from, to, out)
  const owner = { joins: true, lost: () => assert.fail('lost') }
  for (const d of all) {
    const b = frame(d)
    assert.equal(write(into, addressOf(b), b.length), b.length)
  }
  burst.read(from, all.length, VNET)
  for (let i = 0; i < all.length; i++) burst.put(owner, to, burst.slot(i), (burst.results[i] as number) - VNET, VNET)
  burst.flush()
  const taken = () => {
    const n = read(out, base + room - VNET, 66_000)
    return n < 0 ? undefined : n - VNET
  }
  let frames = 0
  const payloads: string[] = []
  const each = {
    offload: false,
    flush: () => {},
    transmit(off: number, len: number): number {
      const b = arena.bytes
      const length = len - L4
      assert.equal(ipv4.totalLength(b, off + L3), len - L3)
      assert.ok(ipv4.sound(b, off + L3))
      assert.equal(udp.length(b, off + L4), length)
      assert.equal(finish(sum(b, off + L4, length, pseudo4(SRC, DST, ipv4.UDP, length))), 0)
      payloads.push(
        `${udp.dstPort(b, off + L4)} ${Buffer.from(b.subarray(off + HEADERS, off + len)).toString('latin1')}`,
      )
      return len
    },
  }
  for (let len = taken(); len !== undefined; len = taken()) {
    frames++
    if (vnet.flags(arena.bytes, room - VNET) === 0) each.transmit(room, len)
    else software.transmit(each, room, len)
  }
  return { frames, payloads }
}

/** Long payloads by their beginning and length. */
const brief = (text: string): string => (text.length > 50 ? `${text.slice(0, 20)}… ${text.length}` : text)
const told = (all: readonly Datagram[]) => all.map((d) => brief(`${d.port ?? 6000} ${d.payload}`))
const ten = (more: Partial<Datagram> = {}) =>
  Array.from({ length: 10 }, (_, n) => ({ payload: `number ${n} of ten`, ...more }))

const CASES: readonly (readonly [what: string, all: readonly Datagram[], frames: number])[] = [
  ['ten of one flow', ten(), 1],
  ['the last one shorter', [...ten(), { payload: 'short' }], 1],
  ['a shorter one ends a run', [...ten(), { payload: 'short' }, ...ten()], 2],
  ['a longer one begins another', [{ payload: 'ab' }, { payload: 'abc' }, { payload: 'abd' }], 2],
  ['two flows in turn', [{ payload: 'a' }, { payload: 'b', port: 1 }, { payload: 'c' }, { payload: 'd', port: 1 }], 4],
  ['another TTL', [{ payload: 'aa' }, { payload: 'bb', ttl: 63 }], 2],
  [
    'identifications mean nothing where fragments are forbidden',
    [
      { payload: 'aa', id: 7 },
      { payload: 'bb', id: 3 },
    ],
    1,
  ],
  ['what may be fragmented keeps its identification', ten({ fragment: 0 }), 10],
  ['fragments', ten({ fragment: ipv4.MF }), 10],
  ['checksums that the sender computed', ten({ finished: true }), 10],
  ['empty datagrams', [{ payload: '' }, { payload: '' }], 2],
  [
    'no more than one packet holds',
    Array.from({ length: 32 }, (_, n) => ({ payload: String.fromCharCode(65 + n).repeat(2400) })),
    2,
  ],
]
for (const [what, all, frames] of CASES)
  test(what, { skip }, () => {
    const got = through(all)
    assert.deepEqual(got.payloads.map(brief), told(all))
    assert.equal(got.frames, frames)
  })
