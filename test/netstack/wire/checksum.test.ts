/** The checksum by every way there is, against one that is too simple to be wrong: any alignment, odd lengths, any start. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { makeArena } from '../../../src/dataplane/memory.ts'
import { fold, sum } from '../../../src/netstack/wire/checksum.ts'
import { useVectors, vectorBuffer } from '../../../src/netstack/wire/checksum-simd.ts'

/** RFC 1071 §4.1, word by word. */
function naive(b: Uint8Array, off: number, len: number, initial: number): number {
  let s = initial
  for (let i = 0; i < len; i++) {
    s += i % 2 === 0 ? (b[off + i] as number) << 8 : (b[off + i] as number)
    s = (s & 0xffff) + (s >>> 16)
  }
  return fold(s)
}

const { bytes: arena } = makeArena(1)
const plain = new Uint8Array(1 << 18)
for (let i = 0; i < plain.length; i++) plain[i] = Math.imul(i ^ 0x5bd1, 0x9e3779b1) >>> 24
arena.set(plain)

for (const [name, b] of [
  ['vectors', arena],
  ['words', plain],
] as const)
  test(`${name}: the sum is the naive one`, (t) => {
    if (name === 'vectors' && vectorBuffer !== arena.buffer) return t.skip('no SIMD here')
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 5000 }),
        fc.oneof(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 128 << 10 })),
        fc.integer({ min: 0, max: 0x7ffff }),
        (off, len, initial) => assert.equal(fold(sum(b, off, len, initial)), naive(b, off, len, initial)),
      ),
      { numRuns: 500 },
    )
  })

test('128 KiB of ones lose no carry', () => {
  arena.fill(0xff, 1, 1 + (128 << 10))
  assert.equal(fold(sum(arena, 1, 128 << 10, 0)), 0xffff)
  arena.set(plain)
})

test('without a WebAssembly.Memory there are no vectors, and nothing else changes', () => {
  assert.equal(useVectors({ buffer: new ArrayBuffer(64) }), false)
  assert.equal(vectorBuffer, arena.buffer)
})
