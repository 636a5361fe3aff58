/** The engine's hot functions without a system call: `node bench/micro/engine.ts`. */
import benny from 'benny'
import { makeArena } from '../../src/dataplane/memory.ts'
import { FlowTable, TCP } from '../../src/netstack/flow/table.ts'
import { find4, insert4 } from '../../src/netstack/flow/tuple.ts'
import { Frame } from '../../src/netstack/frame.ts'
import { Timers } from '../../src/netstack/timers.ts'
import { sum } from '../../src/netstack/wire/checksum.ts'
import { parse } from '../../src/netstack/wire/parse.ts'

const arena = makeArena(4)
const at = arena.slot()
const bytes = arena.bytes
const GUEST = 0xc0a8640a | 0
const PEER = 0x0a4d0001 | 0
/** Ethernet, IPv4, TCP with 1448 bytes of payload, unfinished checksum. */
bytes.set([1, 0, 0, 0, 0, 0, 34, 0, 16, 0], at - 10)
bytes.set(
  Buffer.from('020000000001020000000002080045000 5dc00004000400600 00c0a8640a0a4d0001'.replaceAll(' ', ''), 'hex'),
  at,
)
bytes.set(Buffer.from('b0001451000000010000000250100200000000 00'.replaceAll(' ', ''), 'hex'), at + 34)
const header = sum(bytes, at + 14, 20, 0)
const folded = ~((header & 0xffff) + (header >>> 16)) & 0xffff
bytes[at + 24] = folded >> 8
bytes[at + 25] = folded & 255
const frame = new Frame()
frame.off = at
frame.len = 1514
if (parse(bytes, frame, true) !== 0) throw new Error('the frame is not sound')

const flows = new FlowTable(16384, 16, 1)
for (let i = 0; i < 10_000; i++) insert4(flows, 0, TCP, GUEST, 1000 + i, PEER, 5201, 0, 0)
const timers = new Timers(16384)
let now = 0

await benny.suite(
  'engine',
  benny.add('parse a TCP frame', () => {
    parse(bytes, frame, true)
  }),
  benny.add('find one of 10,000 flows', () => {
    find4(flows, 0, TCP, GUEST, 1000 + (now++ % 10_000), PEER, 5201)
  }),
  benny.add('set a timer', () => {
    timers.set(now++ & 16383, now + 200)
  }),
  benny.add('next wake of 16,384 timers', () => {
    timers.nextWake()
  }),
  benny.add('checksum 40 bytes', () => {
    sum(bytes, at, 40, 0)
  }),
  benny.add('checksum 1500 bytes', () => {
    sum(bytes, at, 1500, 0)
  }),
  benny.add('checksum 64 KiB', () => {
    sum(bytes, at, 65536, 0)
  }),
  benny.cycle(),
)
