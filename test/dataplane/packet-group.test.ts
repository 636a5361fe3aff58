/** A group of packet sockets under one nic: more frames wait than one socket's buffer holds, none twice, and they come in order. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Burst } from '../../src/dataplane/burst.ts'
import { PacketPort } from '../../src/dataplane/ports.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { Arena } from '../../src/netstack/arena.ts'
import { close } from '../../src/sys/fd.ts'
import { addressOf } from '../../src/sys/libc.ts'
import { linkIndex, setLinkUp } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { openPacket, openPackets } from '../../src/sys/packet.ts'
import { send } from '../../src/sys/socket.ts'
import { PATIENCE_MS, skipWithoutRoot } from './lab.ts'

const VNET = 10
/** Of no protocol that the kernel would answer: local experimental EtherType 1. */
const ETHERTYPE = 0x88b5
/** net.core.rmem_max of kernels before 6.17. */
const EACH = 212_992
const netns = `nt${Math.random().toString(36).slice(2, 8)}`
const ip = (...argv: string[]) => execFileSync('ip', argv, { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' })
after(() => {
  try {
    ip('netns', 'delete', netns)
  } catch {
    // It was not made.
  }
})

async function lab() {
  try {
    ip('netns', 'add', netns)
    ip('-n', netns, 'link', 'add', 'near', 'type', 'veth', 'peer', 'name', 'wire')
  } catch {
    // From the test before.
  }
  inNetns(`/run/netns/${netns}`, () => {
    setLinkUp('near')
    setLinkUp('wire')
  })
  // Until the kernel has noticed the carrier, in its own time, it throws away what is sent and says that it was.
  for (
    const end = Date.now() + PATIENCE_MS;
    !ip('-n', netns, 'link', 'show', 'near').includes('state UP');
    await sleep(20)
  )
    assert.ok(Date.now() < end, 'the link has no carrier')
  return inNetns(`/run/netns/${netns}`, () => {
    const fds = openPackets(linkIndex('wire'), true, EACH)
    assert.ok(typeof fds !== 'number', `openPackets: ${fds}`)
    return { fds, near: openPacket(linkIndex('near'), true) }
  })
}

for (const ring of [false, true])
  test(`more frames than one socket holds, in order, read ${ring ? 'many at a time' : 'one by one'}`, {
    skip: skipWithoutRoot,
  }, async () => {
    const { fds, near } = await lab()
    const arena = new Arena(new ArrayBuffer(8 << 20))
    const base = addressOf(arena.bytes)
    const reactor = new Reactor(4096)
    const burst = ring ? Burst.open(arena, base) : undefined
    const seen: number[] = []
    const port = new PacketPort({
      fds,
      vnetHdr: true,
      reactor,
      arena,
      base,
      slot: arena.slot(),
      burst,
      network: {
        receive(_index, off, len) {
          if (arena.view.getUint16(off + 12) !== ETHERTYPE) return
          assert.equal(len, 1400)
          seen.push(arena.view.getUint32(off + 14))
        },
        lost: () => {},
      },
      endOfBurst: () => {},
    })
    port.start()
    const frame = new Uint8Array(new ArrayBuffer(VNET + 1400))
    const view = new DataView(frame.buffer)
    frame.fill(0xff, VNET, VNET + 12)
    view.setUint16(VNET + 12, ETHERTYPE)
    let n = 0
    const emit = (count: number) => {
      for (const end = n + count; n < end; n++) {
        view.setUint32(VNET + 14, n)
        assert.equal(send(near, addressOf(frame), frame.length), frame.length)
      }
    }
    const turn = () => {
      const ready = reactor.wait(0)
      reactor.dispatch(ready)
      return ready
    }
    // A heap that waits, then arrivals between turns, until the kernel has gone round all sockets more than once.
    emit(600)
    for (const end = Date.now() + PATIENCE_MS; n < 3000; ) {
      turn()
      assert.ok(Date.now() < end, `${seen.length} frames of ${n} arrived`)
      // A turn is bounded by time too: on a busy machine it reads less than comes, and sockets are finite.
      if (n - seen.length < 900) emit(40)
    }
    for (const end = Date.now() + PATIENCE_MS; turn() > 0 || (seen.length < n && Date.now() < end); );
    port.close()
    close(near)
    assert.ok(fds.length > 8, `${fds.length} sockets`)
    assert.equal(seen.length, n)
    assert.ok(
      seen.every((s, i) => s === i),
      `out of order at ${seen.findIndex((s, i) => s !== i)}`,
    )
  })
