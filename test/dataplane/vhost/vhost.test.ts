/** The vhost-user back-end against a driver that does as it should, and one that does not. */
import assert from 'node:assert/strict'
import { closeSync, ftruncateSync, mkdtempSync, readdirSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import fc from 'fast-check'
import { Reactor } from '../../../src/dataplane/reactor.ts'
import { TurnEnd } from '../../../src/dataplane/turn-end.ts'
import { headerScratch, VhostPort } from '../../../src/dataplane/vhost/port.ts'
import { Arena } from '../../../src/netstack/arena.ts'
import { SoftwareOffload } from '../../../src/netstack/switch/segment.ts'
import * as vnet from '../../../src/netstack/wire/vnet.ts'
import { addressOf } from '../../../src/sys/libc.ts'
import { memfd, signalEvent } from '../../../src/sys/memory.ts'
import { AF_UNIX, bind, listen, SOCK_NONBLOCK, SOCK_STREAM, socket } from '../../../src/sys/socket.ts'
import { Driver, EVENT_IDX, FEATURES, GUEST, HEADER, INDIRECT, MEMORY, NEXT, SIZE, WRITE } from './driver.ts'

const dir = mkdtempSync(join(tmpdir(), 'noid-vhost-'))
after(() => rmSync(dir, { recursive: true, force: true }))
const arena = new Arena(new ArrayBuffer(4 << 20))
const base = addressOf(arena.bytes)
const reactor = new Reactor(1024)
const software = new SoftwareOffload(arena)
const headerAt = headerScratch(arena)
const slot = arena.slot()
const frame = arena.slot()
const BUFFERS = 0x10000
let serial = 0

function back() {
  const path = join(dir, `s${serial++}`)
  const fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
  assert.equal(bind(fd, { family: 'unix', path }), 0)
  listen(fd, 4)
  const received: string[] = []
  const broken: string[] = []
  const turnEnd = new TurnEnd()
  const port = new VhostPort(
    {
      fd,
      reactor,
      arena,
      base,
      slot,
      software,
      turnEnd,
      network: {
        receive: (_i, off, len) =>
          received.push(Buffer.from(arena.bytes.subarray(off - 10, off + len)).toString('hex')),
        lost: () => {},
      },
      endOfBurst: () => {},
      broken: (_i, why) => broken.push(why),
    },
    headerAt,
  )
  port.start()
  const turns = (n = 6) => {
    for (let i = 0; i < n; i++) {
      reactor.dispatch(reactor.wait(0))
      turnEnd.run()
    }
  }
  return { path, port, received, broken, turns, turnEnd }
}

/** A back-end and a driver that are set up. */
function pair(features = FEATURES) {
  const b = back()
  const d = new Driver(b.path)
  d.setUp(features)
  b.turns()
  const sent = (head = 0) => {
    d.offer(1, head)
    signalEvent(d.kick[1] as number)
    b.turns()
  }
  const close = () => {
    d.close()
    b.port.close()
  }
  return { ...b, d, sent, close }
}
const fill = (d: Driver, at: number, len: number) => {
  for (let i = 0; i < len; i++) d.bytes[at + i] = i * 7 + (i >> 8)
  return Buffer.from(d.bytes.subarray(at, at + len)).toString('hex')
}

for (const [name, features] of [
  ['without', FEATURES],
  ['with', FEATURES | EVENT_IDX],
] as const)
  test(`${name} event indices: frames of the guest come whole, from one buffer, from several, from an indirect table`, () => {
    const { d, sent, received, broken, close } = pair(features)
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 60_000 }),
        fc.integer({ min: 1, max: 20 }),
        fc.boolean(),
        (len, parts, indirect) => {
          const total = len + HEADER
          d.bytes.fill(0, BUFFERS, BUFFERS + HEADER)
          fill(d, BUFFERS + HEADER, len)
          const table = indirect ? 0x8000 : undefined
          const each = Math.ceil(total / parts)
          const count = Math.ceil(total / each)
          for (let i = 0; i < count; i++) {
            const part = Math.min(each, total - i * each)
            d.descriptor(1, i, GUEST + BUFFERS + i * each, part, i < count - 1 ? NEXT : 0, i + 1, table)
          }
          const head = indirect ? 5 : 0
          if (indirect) d.descriptor(1, 5, GUEST + 0x8000, count * 16, INDIRECT)
          const before = d.used(1)
          sent(head)
          assert.equal(
            received.pop(),
            '00'.repeat(10) + Buffer.from(d.bytes.subarray(BUFFERS + HEADER, BUFFERS + total)).toString('hex'),
          )
          assert.equal(d.used(1), (before + 1) & 0xffff)
          assert.equal(d.usedAt(1, before).head, head)
        },
      ),
      { numRuns: 60 },
    )
    assert.deepEqual(broken, [])
    close()
  })

test('frames for the guest: as many buffers as they take, their number in the header, told once in a turn', () => {
  const { d, port, turns, turnEnd, close } = pair()
  let offered = 0
  fc.assert(
    fc.property(fc.integer({ min: 14, max: 60_000 }), fc.integer({ min: 1526, max: 8192 }), (len, size) => {
      const need = Math.ceil((len + HEADER) / size)
      for (let i = 0; i < need; i++, offered++) {
        d.descriptor(0, offered % SIZE, GUEST + BUFFERS + i * size, size, WRITE)
        d.offer(0, offered % SIZE)
      }
      for (let i = 0; i < len; i++) arena.bytes[frame + i] = i * 5 + (i >> 8)
      vnet.write(arena.bytes, frame - 10, 1, vnet.GSO_TCPV4, 54, 1448, 34, 16)
      const before = d.used(0)
      assert.equal(port.transmit(frame, len), len)
      assert.equal((d.used(0) - before) & 0xffff, need)
      assert.equal(d.view.getUint16(BUFFERS + 10, true), need)
      const header = Buffer.from(arena.bytes.subarray(frame - 10, frame)).toString('hex')
      assert.equal(Buffer.from(d.bytes.subarray(BUFFERS, BUFFERS + 10)).toString('hex'), header)
      const got = d.bytes.subarray(BUFFERS + HEADER, BUFFERS + HEADER + len)
      assert.ok(Buffer.from(got).equals(Buffer.from(arena.bytes.subarray(frame, frame + len))))
      // None left: the frame is not for now, and the ring is as it was.
      assert.equal(port.transmit(frame, len), -11)
      assert.equal(d.called(0), false)
      turnEnd.run()
      assert.equal(d.called(0), true)
    }),
    { numRuns: 60 },
  )
  turns()
  close()
})

test('a driver that takes no segments gets them cut and finished', () => {
  const { d, port, close } = pair((1n << 32n) | (1n << 30n) | (1n << 15n))
  for (let i = 0; i < 8; i++) {
    d.descriptor(0, i, GUEST + BUFFERS + i * 2048, 2048, WRITE)
    d.offer(0, i)
  }
  arena.bytes.fill(0, frame, frame + 4000)
  arena.bytes.set([8, 0, 0x45, 0, 0x0f, 0x92, 0, 0, 0, 0, 64, 6], frame + 12)
  arena.bytes[frame + 46] = 0x50
  vnet.write(arena.bytes, frame - 10, 1, vnet.GSO_TCPV4, 54, 1448, 34, 16)
  assert.equal(port.transmit(frame, 4000), 0)
  assert.equal(d.used(0), Math.ceil((4000 - 54) / 1448))
  assert.equal(d.bytes[BUFFERS], 0)
  assert.equal(d.usedAt(0, 0).length, HEADER + 54 + 1448)
  close()
})

test('the next front-end begins where the used ring and it say', () => {
  const { path, port, received, turns, d } = pair()
  fill(d, BUFFERS + HEADER, 100)
  d.descriptor(1, 0, GUEST + BUFFERS, 100 + HEADER, 0)
  for (let i = 0; i < 5; i++) d.offer(1, 0)
  signalEvent(d.kick[1] as number)
  turns()
  d.send(11, [1n])
  turns()
  assert.equal(d.answer()?.[0], 1n | (5n << 32n))
  d.close()
  turns()
  assert.equal(port.transmit(frame, 60), -107)
  const next = new Driver(path)
  next.view.setUint16(0x6000 + 2, 5, true)
  next.setOffered(1, 5)
  next.setUp(FEATURES, [0, 5])
  turns()
  received.length = 0
  next.descriptor(1, 3, GUEST + BUFFERS, 100 + HEADER, 0)
  next.offer(1, 3)
  signalEvent(next.kick[1] as number)
  turns()
  assert.equal(received.length, 1)
  assert.deepEqual([next.used(1), next.usedAt(1, 5).head], [6, 3])
  next.close()
  port.close()
})

const hostile: Record<string, (d: Driver) => void> = {
  'a head beyond the table': (d) => d.offer(1, SIZE),
  'more offers than the ring has': (d) => d.setOffered(1, SIZE + 1),
  'a chain that bites its tail': (d) => {
    d.descriptor(1, 0, GUEST + BUFFERS, 1, NEXT, 1)
    d.descriptor(1, 1, GUEST + BUFFERS, 1, NEXT, 0)
    d.offer(1, 0)
  },
  'a chain that leads out of the table': (d) => {
    d.descriptor(1, 0, GUEST + BUFFERS, 1, NEXT, SIZE)
    d.offer(1, 0)
  },
  'a buffer beyond the memory': (d) => {
    d.descriptor(1, 0, GUEST + MEMORY - 10, 100, 0)
    d.offer(1, 0)
  },
  'a buffer before the memory': (d) => {
    d.descriptor(1, 0, 0, 100, 0)
    d.offer(1, 0)
  },
  'an address beyond all': (d) => {
    d.view.setBigUint64(0x4000, 0xffff_ffff_ffff_fff0n, true)
    d.view.setUint32(0x4008, 100, true)
    d.offer(1, 0)
  },
  'a buffer to write among those to send': (d) => {
    d.descriptor(1, 0, GUEST + BUFFERS, 100, WRITE)
    d.offer(1, 0)
  },
  'an indirect table in an indirect table': (d) => {
    d.descriptor(1, 0, GUEST + 0x8000, 16, INDIRECT)
    d.descriptor(1, 0, GUEST + 0x8000, 16, INDIRECT, 0, 0x8000)
    d.offer(1, 0)
  },
  'an indirect table that is not whole': (d) => {
    d.descriptor(1, 0, GUEST + 0x8000, 17, INDIRECT)
    d.offer(1, 0)
  },
  'an indirect table beyond the memory': (d) => {
    d.descriptor(1, 0, GUEST + MEMORY - 16, 32, INDIRECT)
    d.offer(1, 0)
  },
}
for (const [what, act] of Object.entries(hostile))
  test(`a broken ring ends its connection and nothing else: ${what}`, () => {
    const { d, path, port, received, broken, turns } = pair()
    act(d)
    signalEvent(d.kick[1] as number)
    turns()
    assert.equal(broken.length, 1)
    assert.equal(d.answer(), null)
    d.close()
    const next = new Driver(path)
    next.setUp()
    turns()
    next.descriptor(1, 0, GUEST + BUFFERS, 60 + HEADER, 0)
    next.offer(1, 0)
    signalEvent(next.kick[1] as number)
    turns()
    assert.equal(received.length, 1)
    next.close()
    port.close()
  })

test('buffers for the device that are none: said at the end of the turn, the switch goes on', () => {
  const { d, port, broken, turns, close } = pair()
  d.descriptor(0, 0, GUEST + MEMORY, 2000, WRITE)
  d.offer(0, 0)
  assert.ok(port.transmit(frame, 60) < 0)
  assert.deepEqual(broken, [])
  turns()
  assert.equal(broken.length, 1)
  close()
})

test('any bytes at all in the rings: no exception, no crash, and the connection goes on or ends', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1024, maxLength: 1024 }),
      fc.integer({ min: 0, max: 40 }),
      (noise, offers) => {
        const { d, port, close, turns } = pair()
        // Half of the addresses are of the memory, so that walks go on.
        d.bytes.set(noise, 0x1000)
        d.bytes.set(noise, 0x4000)
        for (let i = 0; i < SIZE; i += 2)
          for (const t of [0x1000, 0x4000]) d.view.setBigUint64(t + 16 * i, BigInt(GUEST + BUFFERS), true)
        for (let i = 0; i < offers; i++) for (const q of [0, 1]) d.offer(q, (noise[i] as number) % SIZE)
        for (let i = 0; i < 5; i++) port.transmit(frame, 1000)
        signalEvent(d.kick[1] as number)
        turns()
        close()
      },
    ),
    { numRuns: 200 },
  )
})

const rude: Record<string, (d: Driver) => void> = {
  'a message without an end': (d) => d.send(5, new Uint8Array(4096)),
  'a request that was not offered': (d) => d.send(24, [0n]),
  'another version': (d) => d.send(1, [], [], 2),
  'features that were not offered': (d) => d.send(2, [1n << 50n]),
  'a queue that is not there': (d) => d.send(8, [7n | (64n << 32n)]),
  'a ring that is no power of two': (d) => {
    d.setUp()
    d.send(11, [1n])
    d.send(8, [1n | (65n << 32n)])
    d.send(12, [1n], [d.kick[1] as number])
  },
  'memory beyond its file': (d) => d.send(5, [1n, BigInt(GUEST), BigInt(2 * MEMORY), 0n, 0n], [d.file]),
  'memory without a file': (d) => d.send(5, [1n, BigInt(GUEST), BigInt(MEMORY), 0n, 0n]),
  'rings outside the memory': (d) => {
    d.setUp()
    d.send(9, [1n, 0n, 0n, 0n, 0n])
  },
}
for (const [what, act] of Object.entries(rude))
  test(`a front-end that makes no sense is cut: ${what}`, () => {
    const b = back()
    const d = new Driver(b.path)
    b.turns(1)
    act(d)
    b.turns()
    let last = d.answer()
    for (let i = 0; i < 5 && last !== null; i++) last = d.answer()
    assert.equal(last, null)
    assert.equal(b.broken.length, 1)
    d.close()
    b.port.close()
  })

test('what asks to be acknowledged is', () => {
  const { d, turns, close } = pair()
  d.send(19, [0n], [], 1 | 8)
  turns()
  assert.equal(d.answer()?.[0], 0n)
  close()
})

test('neither descriptors nor mappings are left', () => {
  const fds = () => readdirSync('/proc/self/fd').length
  const one = () => {
    const { close, turns } = pair()
    turns()
    close()
  }
  one()
  const before = fds()
  for (let i = 0; i < 20; i++) one()
  assert.equal(fds(), before)
})

test('pages that are written while QEMU migrates are marked', () => {
  const { d, port, turns, close } = pair(FEATURES | (1n << 26n))
  const file = memfd('log')
  ftruncateSync(file, 1 << 20)
  d.send(6, [1n << 20n, 0n], [file])
  turns()
  assert.equal(d.answer()?.[0], 0n)
  d.descriptor(0, 0, GUEST + BUFFERS, 8192, WRITE)
  d.offer(0, 0)
  assert.equal(port.transmit(frame, 5000), 5000)
  const log = new Uint8Array(1 << 20)
  readSync(file, log, 0, log.length, 0)
  const marked = [...log.keys()].filter((i) => log[i] !== 0)
  const page = (GUEST + BUFFERS) / 4096
  assert.deepEqual(marked, [page / 8])
  assert.equal(log[page / 8], 0b11)
  closeSync(file)
  close()
})
