// The ring against a reader of any speed, and the file against tshark.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { Capture } from '../../../src/netstack/trace/capture.ts'
import { INBOUND, OUTBOUND } from '../../../src/netstack/trace/pcapng.ts'

interface Block {
  readonly type: number
  readonly bytes: Buffer
}

function blocks(file: Buffer): Block[] {
  const found: Block[] = []
  for (let at = 0; at < file.length; ) {
    const length = file.readUInt32LE(at + 4)
    assert.ok(length >= 12 && length % 4 === 0 && at + length <= file.length, `a broken block at ${at}`)
    assert.equal(file.readUInt32LE(at + length - 4), length)
    found.push({ type: file.readUInt32LE(at), bytes: file.subarray(at, at + length) })
    at += length
  }
  return found
}

test('whatever the reader does, the file is whole blocks, in order, and what is missing is counted', () => {
  const step = fc.record({
    frames: fc.nat(5),
    len: fc.integer({ min: 14, max: 600 }),
    take: fc.integer({ min: 0, max: 3000 }),
    port: fc.nat(2),
  })
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 150 }), (steps) => {
      let clock = 1.7e15
      const capture = new Capture({ only: -1, ring: 4096, clock: () => clock++, describe: (p) => `vm${p}` })
      const frame = new Uint8Array(1024)
      const out: Buffer[] = []
      let sent = 0
      const take = (most: number) => {
        const n = Math.min(most, capture.pending().length)
        out.push(Buffer.from(capture.pending().subarray(0, n)))
        capture.taken(n)
        return n
      }
      for (const s of steps) {
        for (let k = 0; k < s.frames; k++) {
          frame[14] = sent & 255
          frame[15] = sent >> 8
          capture.frame(s.port, OUTBOUND, frame, 0, s.len, undefined)
          sent++
        }
        take(s.take)
      }
      while (take(Infinity) > 0);
      // One more frame, so that what is owed is said.
      capture.frame(0, OUTBOUND, frame, 0, 14, undefined)
      while (take(Infinity) > 0);
      const file = blocks(Buffer.concat(out))
      const packets = file.filter((b) => b.type === 6)
      assert.equal(packets.length, capture.captured)
      assert.equal(packets.length + capture.missed, sent + 1)
      let last = -1
      for (const p of packets.slice(0, -1)) {
        const n = p.bytes.readUInt16LE(28 + 14)
        if (p.bytes.readUInt32LE(20) >= 16) {
          assert.ok(n > last)
          last = n
        }
      }
      const said = new Map<number, number>()
      for (const b of file) if (b.type === 5) said.set(b.bytes.readUInt32LE(8), Number(b.bytes.readBigUInt64LE(24)))
      assert.equal(
        [...said.values()].reduce((a, b) => a + b, 0),
        capture.missed,
      )
    }),
    { numRuns: 200 },
  )
})

const tshark = spawnSync('tshark', ['--version']).status === 0
test('tshark reads it: interfaces by name, direction, the reason of a drop', {
  skip: tshark ? false : 'tshark is not installed',
}, () => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-capture-'))
  try {
    const capture = new Capture({ only: -1, clock: () => 1_700_000_000_123_456, describe: (p) => ['web', 'db'][p]! })
    // An ARP request, padded to 60 bytes.
    const arp = Buffer.alloc(60)
    Buffer.from('ffffffffffff02000000000a08060001080006040001', 'hex').copy(arp)
    capture.frame(0, INBOUND, arp, 0, arp.length, undefined)
    capture.frame(1, OUTBOUND, arp, 0, arp.length, undefined)
    capture.frame(0, INBOUND, arp, 0, arp.length, Buffer.from('guard-arp: forged'))
    const file = join(dir, 'x.pcapng')
    writeFileSync(file, capture.pending())
    const fields = [
      'frame.interface_name',
      'frame.packet_flags_direction',
      'frame.comment',
      'frame.time_epoch',
      'arp.opcode',
    ]
    const said = execFileSync(
      'tshark',
      ['-r', file, '-T', 'fields', '-E', 'separator=|', ...fields.flatMap((f) => ['-e', f])],
      {
        stdio: ['ignore', 'pipe', 'ignore'],
        timeout: 60_000,
      },
    )
    const rows = said
      .toString()
      .trim()
      .split('\n')
      .map((r) => r.split('|'))
    assert.deepEqual(
      rows.map((r) => [r[0], Number(r[1]), r[2], r[4]]),
      [
        ['web', 1, '', '1'],
        ['db', 2, '', '1'],
        ['web', 1, 'guard-arp: forged', '1'],
      ],
    )
    assert.match(rows[0]![3]!, /^1700000000\.123456/)
  } finally {
    rmSync(dir, { recursive: true })
  }
})
