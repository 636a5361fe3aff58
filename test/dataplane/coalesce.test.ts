/** Datagrams of one flow that leave as one frame: what is joined comes apart the same, and what would not is left alone. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Burst } from '../../src/dataplane/burst.ts'
import { Arena, VNET } from '../../src/netstack/arena.ts'
import { SoftwareOffload } from '../../src/netstack/switch/segment.ts'
import { put16 } from '../../src/netstack/wire/bytes.ts'
import { finish, fold, pseudo4, pseudo6, sum } from '../../src/netstack/wire/checksum.ts'
import * as ethernet from '../../src/netstack/wire/ethernet.ts'
import * as ipv4 from '../../src/netstack/wire/ipv4.ts'
import * as ipv6 from '../../src/netstack/wire/ipv6.ts'
import * as udp from '../../src/netstack/wire/udp.ts'
import * as vnet from '../../src/netstack/wire/vnet.ts'
import { close, read, write } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET } from '../../src/sys/socket.ts'

const L3 = ethernet.ETHERNET

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

type Family = 4 | 6
const l4Of = (family: Family): number => L3 + (family === 4 ? ipv4.IPV4 : ipv6.IPV6)
const pseudoOf = (f: Uint8Array, l3: number, family: Family, length: number): number =>
  family === 4 ? pseudo4(SRC, DST, ipv4.UDP, length) : pseudo6(f, l3, ipv4.UDP, length)

function frame(family: Family, d: Datagram): Uint8Array {
  const l4 = l4Of(family)
  const b = new Uint8Array(VNET + l4 + udp.UDP + d.payload.length)
  const f = b.subarray(VNET)
  ethernet.setDst(f, 0, 0x0200, 2)
  ethernet.setSrc(f, 0, 0x0200, 1)
  ethernet.setType(f, 0, family === 4 ? ethernet.TYPE_IPV4 : ethernet.TYPE_IPV6)
  const length = udp.UDP + d.payload.length
  if (family === 4)
    ipv4.write(f, L3, ipv4.IPV4 + length, d.id ?? 0, d.fragment ?? ipv4.DF, d.ttl ?? 64, ipv4.UDP, SRC, DST)
  else {
    ipv6.write(f, L3, length, ipv4.UDP, d.ttl ?? 64)
    ipv6.setSrc(f, L3, 0xfd000000 | 0, 0, 0, 1)
    ipv6.setDst(f, L3, 0xfd000000 | 0, 0, 0, 2)
  }
  udp.write(f, l4, 5000, d.port ?? 6000, length)
  f.set(Buffer.from(d.payload, 'latin1'), l4 + udp.UDP)
  if (d.finished) {
    put16(f, l4 + udp.CHECKSUM, finish(sum(f, l4, length, pseudoOf(f, L3, family, length))))
    vnet.clear(b, 0)
  } else {
    put16(f, l4 + udp.CHECKSUM, fold(pseudoOf(f, L3, family, length)))
    vnet.write(b, 0, vnet.NEEDS_CSUM, vnet.GSO_NONE, l4 + udp.UDP, 0, l4, udp.CHECKSUM)
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
function through(family: Family, all: readonly Datagram[]): { frames: number; payloads: string[] } {
  const burst = ring as Burst
  const [into, from] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  const [to, out] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
  far.push(into, from, to, out)
  const owner = { joins: true, lost: () => assert.fail('lost') }
  for (const d of all) {
    const b = frame(family, d)
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
      const l4 = l4Of(family)
      const length = len - l4
      if (family === 4) {
        assert.equal(ipv4.totalLength(b, off + L3), len - L3)
        assert.ok(ipv4.sound(b, off + L3))
      } else assert.equal(ipv6.payloadLength(b, off + L3), length)
      assert.equal(udp.length(b, off + l4), length)
      assert.equal(finish(sum(b, off + l4, length, pseudoOf(b, off + L3, family, length))), 0)
      const text = Buffer.from(b.subarray(off + l4 + udp.UDP, off + len)).toString('latin1')
      payloads.push(`${udp.dstPort(b, off + l4)} ${text}`)
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
const ipv4Only = (d: Datagram): boolean => d.fragment !== undefined || d.id !== undefined
for (const family of [4, 6] as const)
  for (const [what, all, frames] of CASES) {
    if (family === 6 && all.some(ipv4Only)) continue
    test(`IPv${family}: ${what}`, { skip }, () => {
      const got = through(family, all)
      assert.deepEqual(got.payloads.map(brief), told(all))
      assert.equal(got.frames, frames)
    })
  }
