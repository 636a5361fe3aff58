/** The internet checksum (RFC 1071) of a header, a packet and a frame with segmentation offload. */
import { makeArena } from '../src/dataplane/memory.ts'
import { sum } from '../src/netstack/wire/checksum.ts'
import { type Case, sink, suite } from './lib/suite.ts'

const arena = makeArena(4)
const at = arena.slot()
arena.bytes.fill(0xa5, at, at + 65536)
const summing = (len: number, per: number): Case => ({
  per,
  run: () => {
    for (let i = 0; i < per; i++) sink.value ^= sum(arena.bytes, at, len, i)
  },
})

await suite('checksum', {
  'checksum of 40 bytes': summing(40, 100),
  'checksum of 1500 bytes': summing(1500, 10),
  'checksum of 64 KiB': summing(65536, 1),
})
