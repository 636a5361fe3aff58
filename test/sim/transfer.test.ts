/**
 * Transfers through the relay over bad links: whatever the seed, both streams arrive whole, both ends finish, nothing is left
 * behind, and simulated time is bounded (a stall is a failure). Guest and host check every byte as it arrives. Every other seed is IPv6.
 * NOID_SEEDS says how many seeds (thousands by hand, fewer in npm test); NOID_SEED repeats one.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Impairment } from './link.ts'
import { Random } from './random.ts'
import { Stream } from './stream.ts'
import { remote, World } from './world.ts'

const SEEDS = Number(process.env.NOID_SEEDS ?? 300)
const ONE = process.env.NOID_SEED

export function scenario(seed: number) {
  const r = new Random(seed ^ 0x5eed)
  const bad = r.pick([0, 0, 0.005, 0.02, 0.1])
  const impairment = (): Impairment => ({
    loss: r.chance(0.6) ? bad : 0,
    duplicate: r.chance(0.4) ? bad : 0,
    corrupt: r.chance(0.4) ? bad : 0,
    reorder: r.chance(0.4) ? bad * 2 : 0,
    hold: r.pick([0.2, 2, 20]),
    delay: r.pick([0.02, 0.1, 2, 25]),
    rate: r.pick([0, 0, 1250, 125_000]),
    queue: r.pick([1 << 16, 1 << 20]),
    split: r.chance(0.5),
  })
  const size = () => r.pick([0, 1, 700, 20_000, 200_000, r.between(0, 600_000)])
  const up = new Stream(seed * 2 + 1, size())
  const down = new Stream(seed * 2 + 2, size())
  const host = remote({
    connectAfter: r.pick([0, 1, 30, 1500]),
    sendBuffer: r.pick([4096, 60_000, 256_000, 4 << 20]),
    receiveBuffer: r.pick([2000, 60_000, 1 << 20]),
    gives: down,
    takes: up,
    drainRate: r.pick([500, 20_000, 1 << 20]),
    giveRate: r.pick([500, 20_000, 1 << 20]),
    pause: r.pick([0, 0, 0.02]),
    lie: r.pick([0, 0, 0, 1000]),
    finFirst: r.chance(0.7),
  })
  const family = seed % 2 === 0 ? 6 : 4
  const world = new World(seed, { up: impairment(), down: impairment(), next: () => host, family })
  const mss = r.pick([1460, 1460, 536, 1000])
  const guest = world.guest({
    gives: up,
    takes: down,
    mss,
    // Wraparound of sequence numbers is the ordinary case here.
    isn: r.chance(0.5) ? r.word() : -r.between(0, 300_000),
    shift: r.pick([-1, 0, 3, 7, 14]),
    sack: r.chance(0.7),
    stamps: seed % 3 !== 0,
    frame: r.chance(0.5) ? mss : mss * r.between(2, 40),
    receiveBuffer: r.pick([3000, 30_000, 256_000, 4 << 20]),
    readRate: r.pick([400, 20_000, 1 << 20]),
    finFirst: host.finFirst ? r.chance(0.7) : true,
  })
  return { world, guest, inbound: r.chance(0.3), host, up, down }
}

export function play(seed: number): void {
  const { world, guest, inbound, host } = scenario(seed)
  if (inbound) world.publish(40000, 80, host)
  else guest.connect()
  const socket = () => world.host.sockets[0]
  // When the link loses the last ACK for longer than TIME-WAIT, the guest's FIN meets a RST; both streams are whole all the same.
  const late = () =>
    guest.state === 'reset' && guest.ended && guest.read === host.gives.length && world.flows.count === 0
  const finished = world.clock.run(() => (guest.done || late()) && socket()?.done, 600_000)
  const about = () =>
    `seed ${seed}: guest ${guest.state} read ${guest.read}/${guest.o.takes.length} finished ${guest.finished} ended ${guest.ended}; ` +
    `host took ${socket()?.accepted}/${host.takes.length} ended ${socket()?.ended}; relay ${[...Array(world.flows.capacity).keys()].filter((i) => world.flows.inUse(i)).map((i) => world.relay.stateName(i))}; at ${Math.round(world.clock.now)} ms`
  assert.ok(finished, about())
  assert.equal(socket().reset, false, about())
  world.clock.run(() => world.flows.count === 0, world.clock.now + 60_000)
  assert.equal(world.flows.count, 0, `a flow stays: ${about()}`)
  assert.ok(socket().closed, `a socket stays: ${about()}`)
}

test(`${SEEDS} seeded transfers both ways over bad links arrive whole and end`, () => {
  if (ONE !== undefined) return play(Number(ONE))
  for (let seed = 1; seed <= SEEDS; seed++)
    try {
      play(seed)
    } catch (e) {
      throw new Error(`seed ${seed}: ${(e as Error).message}`, { cause: e })
    }
})
