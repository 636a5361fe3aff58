/** The flow table and what NAT does with it: find, begin and end a flow, show a client of a published port; and timers. */
import { shownPort } from '../src/netstack/flow/nat.ts'
import { FlowTable, TCP } from '../src/netstack/flow/table.ts'
import { find4, insert4, writeMapped } from '../src/netstack/flow/tuple.ts'
import { Timers } from '../src/netstack/timers.ts'
import { sink, suite } from './lib/suite.ts'

const FLOWS = 10_000
const PER = 100
const GUEST = 0xc0a8640a | 0
const PEER = 0x0a4d0001 | 0
const flows = new FlowTable(16384, 16, 1)
for (let i = 0; i < FLOWS; i++) insert4(flows, 0, TCP, GUEST, 1000 + i, PEER, 5201, 0, 0)
const timers = new Timers(16384)
const client = new Uint8Array(16)
writeMapped(client, 0, PEER)
let now = 0

await suite('flow', {
  [`find one of ${FLOWS} flows`]: {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) sink.value ^= find4(flows, 0, TCP, GUEST, 1000 + (now++ % FLOWS), PEER, 5201)
    },
  },
  'begin and end a flow': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) flows.remove(insert4(flows, 1, TCP, GUEST, 30_000 + i, PEER, 80, 0, now))
    },
  },
  'the port that a client is shown with': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) sink.value ^= shownPort(client, 0, 40_000 + i, 80, 0)
    },
  },
  'set a timer': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) timers.set(now++ & 16383, now + 200)
    },
  },
})
