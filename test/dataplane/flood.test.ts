/**
 * A guest that floods: the others' bytes and names still come, and what is refused is counted. How fast they come is printed and not
 * asserted: the machine has others to serve. The bounds themselves are held where time is exact (test/netstack/switch) or by counting (below).
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { after, before, describe, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { promisify } from 'node:util'
import { TapPort } from '../../src/dataplane/ports.ts'
import type { StatsAnswer } from '../../src/dataplane/protocol.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { Arena } from '../../src/netstack/arena.ts'
import { close, write } from '../../src/sys/fd.ts'
import { addressOf, Scratch } from '../../src/sys/libc.ts'
import { linkIndex } from '../../src/sys/netdev.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { socketpair } from '../../src/sys/scm.ts'
import { SOCK_SEQPACKET, send } from '../../src/sys/socket.ts'
import { arp, BROADCAST_MAC, type Build, tcp, udp } from '../netstack/net.ts'
import { type Guest, Lab, SERVER, skipWithoutRoot } from './lab.ts'

const run = promisify(execFile)
const CHUNK = 100
/** Frames until a refusal must have been counted: what is refused is more than so many in a second, so a slow machine floods for longer. */
const MOST = 2_000_000
/** Guests that only have copies made for them: storm control counts copies, so 2,500 frames in a second are too many, not 16,000. */
const IDLE = 12

describe('a guest that floods', { skip: skipWithoutRoot }, () => {
  let lab: Lab
  let busy: Guest
  let bad: Guest
  let asking: Guest
  let raw = -1
  const memo = new Scratch(2048)
  before(async () => {
    lab = new Lab()
    await lab.start()
    busy = await lab.guest('busy', 10)
    bad = await lab.guest('bad', 11)
    asking = await lab.guest('asking', 12)
    for (let n = 0; n < IDLE; n++) await lab.guest(`idle${n}`, 20 + n)
    raw = inNetns(lab.path(bad.netns), () => openPacket(linkIndex('eth0'), false))
    assert.ok(raw >= 0)
    lab.background(lab.host, ['socat', '-u', 'TCP-LISTEN:7000,reuseaddr,fork', 'OPEN:/dev/null'])
    await lab.listening(lab.host, 'tcp', 7000)
  })
  after(async () => {
    if (raw >= 0) close(raw)
    await lab.close()
  })

  const from = (g: Guest, script: string) =>
    run('ip', ['netns', 'exec', g.netns, 'sh', '-c', script], { timeout: 240_000, encoding: 'utf8' })

  /** Frames one after the other until `done`; how many. */
  async function flood(frame: (n: number) => Build, done: (n: number) => boolean): Promise<number> {
    let n = 0
    for (; !done(n); await turn())
      for (let i = 0; i < CHUNK; i++, n++) {
        const { bytes } = frame(n)({ mac: bad.mac, ip: bad.address })
        memo.bytes.set(bytes)
        send(raw, memo.address, bytes.length)
      }
    return n
  }

  const kinds: readonly [string, (n: number) => Build, string | undefined][] = [
    ['ARP', (n) => arp({ target: `192.168.100.${n % 250}` }), 'storm'],
    ['broadcasts', () => udp({ to: '192.168.100.255:9', dstMac: BROADCAST_MAC }), 'storm'],
    ['connections to closed ports', (n) => tcp({ to: `${SERVER}:${1 + (n % 6000)}`, flags: 2, seq: n }), undefined],
    [
      'datagrams to random ports',
      (n) => udp({ to: `${SERVER}:${1 + ((n * 7919) % 60000)}`, data: 'x' }),
      'udp-evicted',
    ],
  ]
  for (const [what, frame, reason] of kinds)
    test(what, async (t) => {
      let finished = 0
      const work = [
        from(busy, `head -c 64M /dev/zero | socat -u - TCP:${SERVER}:7000`),
        from(asking, 'for i in 1 2 3 4 5; do dig +tries=3 +time=5 @192.168.100.2 asking.noid.internal || exit 1; done'),
      ].map((p) => p.finally(() => finished++))
      const begin = performance.now()
      const [beside, , dig] = await Promise.all([flood(frame, () => finished === 2), ...work])
      const took = Math.round(performance.now() - begin)
      const answered = [...dig.stdout.matchAll(/Query time: (\d+) msec/g)].map((m) => `${m[1]} ms`)
      assert.equal(answered.length, 5)
      assert.equal([...dig.stdout.matchAll(/\tA\t192\.168\.100\.12$/gm)].length, 5)
      t.diagnostic(`${beside} frames in ${took} ms beside 64 MiB; names: ${answered.join(', ')}`)
      if (reason === undefined) return
      const held = async () => {
        const { drops, flows } = await lab.link.request<StatsAnswer>({ op: 'stats' })
        const udp = flows.filter((f) => f.vm === 'bad' && f.proto === 'udp').length
        return { udp, refused: drops.some((d) => d.vm === 'bad' && d.reason === reason) }
      }
      let now = await held()
      assert.ok(now.udp <= 1024, `${now.udp} flows`)
      // Where refusals come back at once, flows end before there are too many: nobody has to be given up.
      if (reason === 'udp-evicted' && now.udp < 1024) return
      let frames = beside
      for (; !now.refused && frames < MOST; now = await held()) frames += await flood(frame, (n) => n === 100 * CHUNK)
      assert.ok(now.refused, `${frames} frames, and no ${reason}`)
    })
})

/** Frames that were taken of two nics which have more of them than there is time for: cheap ones, and dear ones. */
function taken(): readonly [number, number] {
  const arena = new Arena(new ArrayBuffer(4 << 20))
  const reactor = new Reactor(1024)
  const counts: [number, number] = [0, 0]
  const network = {
    receive(index: number): void {
      counts[index]!++
      // A tenth of a millisecond: what opening a flow takes.
      if (index === 1) for (const until = performance.now() + 0.1; performance.now() < until; );
    },
    lost: () => {},
  }
  const base = addressOf(arena.bytes)
  const slot = arena.slot()
  const nics = [0, 1].map((index) => {
    const [near, far] = socketpair(SOCK_SEQPACKET, true) as readonly [number, number]
    const port = new TapPort({
      fds: [near],
      vnetHdr: false,
      reactor,
      arena,
      base,
      slot,
      burst: undefined,
      network,
      endOfBurst: () => {},
    })
    port.index = index
    port.start()
    return { port, far }
  })
  const frame = new Uint8Array(60)
  for (let round = 0; round < 50; round++) {
    for (const { far } of nics) while (write(far, addressOf(frame), frame.length) > 0);
    reactor.dispatch(reactor.wait(0))
  }
  for (const { port, far } of nics) {
    port.close()
    close(far)
  }
  return counts
}

test('a nic whose frames are dear gets fewer of them in a turn than its neighbour', () => {
  let [cheap, dear] = taken()
  // A pause of the process makes the cheap ones of a turn dear too; where turns are not cut by time, there are as many of both each time.
  for (let n = 1; n < 10 && cheap <= 1.5 * dear; n++) [cheap, dear] = taken()
  assert.ok(cheap > 1.5 * dear, `${cheap} cheap ones, ${dear} dear ones`)
})
