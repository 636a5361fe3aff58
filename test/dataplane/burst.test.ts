/** Nics over sockets that keep frames apart (SOCK_SEQPACKET): bursts by io_uring and one by one are the same to everybody. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Burst } from '../../src/dataplane/burst.ts'
import { TapPort } from '../../src/dataplane/ports.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { Arena } from '../../src/netstack/arena.ts'
import { WAY } from '../../src/netstack/switch/port.ts'
import { close, read, write } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET } from '../../src/sys/socket.ts'

const arena = new Arena(new ArrayBuffer(8 << 20))
const base = addressOf(arena.bytes)
const reactor = new Reactor(1024)
const slot = arena.slot()
const own = arena.slot()
const ring = Burst.open(arena, base)
const mine = new Uint8Array(4096)
const far: number[] = []
after(() => {
  for (const fd of far) close(fd)
})

/** Two nics; every frame of the first goes to the second: by `stays` or, as the gateway's do, from a slot of its own. */
function pair(burst: Burst | undefined, fromOwnSlot: (n: number) => boolean) {
  const lost: number[] = []
  let received = 0
  const network = {
    receive(_index: number, off: number, len: number): void {
      if (fromOwnSlot(received++)) {
        arena.bytes.copyWithin(own, off, off + len)
        b.transmit(own, len, WAY.now)
        arena.bytes.fill(0xee, own, own + len)
      } else b.transmit(off, len, WAY.stays)
    },
    lost: (_index: number, error: number) => lost.push(error),
  }
  const nic = () => {
    const [near, there] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
    far.push(there)
    const port = new TapPort({
      fds: [near],
      vnetHdr: false,
      reactor,
      arena,
      base,
      slot,
      burst,
      network,
      endOfBurst: () => {},
    })
    return { port, there }
  }
  const { port: a, there: send } = nic()
  const { port: b, there: take } = nic()
  a.start()
  return {
    lost,
    send(n: number, length: number): void {
      mine.fill(n & 255, 0, length)
      mine[0] = n >> 8
      assert.equal(write(send, addressOf(mine), length), length)
    },
    turn: () => reactor.dispatch(reactor.wait(0)),
    /** The next frame: its number, or −1; its bytes are looked at. */
    take(length: number): number {
      const r = read(take, addressOf(mine), mine.length)
      if (r < 0) return -1
      assert.equal(r, length)
      for (let i = 1; i < r; i++) assert.equal(mine[i], mine[1])
      return ((mine[0] as number) << 8) | (mine[1] as number)
    },
    close(): void {
      a.close()
      b.close()
    },
  }
}

const ways = [
  ['one by one', undefined],
  ['by io_uring', ring],
] as const
for (const [name, burst] of ways) {
  const skip = burst === undefined && name !== 'one by one' ? 'io_uring is not allowed here' : false
  test(`${name}: every frame once, whole, in order, also between those of a slot of its own`, { skip }, () => {
    const p = pair(burst, (n) => n % 7 === 3)
    let sent = 0
    let taken = 0
    // Loads that grow, shrink, and stop, in bursts of every size up to what a socket holds.
    for (let round = 0; round < 300; round++) {
      const count = (round * 13) % 60
      for (let i = 0; i < count; i++) p.send(sent++ & 0x7fff, 60)
      for (let turns = 0; turns < 70 && taken < sent; turns++) {
        p.turn()
        for (let n = p.take(60); n >= 0; n = p.take(60)) assert.equal(n, taken++ & 0x7fff)
      }
      assert.equal(taken, sent)
    }
    assert.deepEqual(p.lost, [])
    p.close()
  })

  test(`${name}: a nic that takes no more costs frames of its own, and nobody waits`, { skip }, () => {
    const p = pair(burst, () => false)
    let sent = 0
    for (let round = 0; round < 400; round++) {
      for (let i = 0; i < 20; i++) p.send(sent++, 600)
      for (let turns = 0; turns < 8; turns++) p.turn()
    }
    let taken = 0
    let last = -1
    for (let n = p.take(600); n >= 0; n = p.take(600), taken++) {
      assert.ok(n > last)
      last = n
    }
    assert.ok(taken > 0 && taken < sent)
    // One by one the switch is told at once; what was put off is told afterwards.
    if (burst !== undefined) assert.equal(p.lost.length + taken, sent)
    assert.ok(p.lost.every((error) => error === -11))
    p.close()
  })
}
