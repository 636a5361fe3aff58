import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

for (const [kind, least] of [
  ['tap', 8],
  ['dgram', 4],
  ['vhost-user', 8],
] as const)
  test(`${kind}: small frames from nic to nic: a turn allocates the same whatever it carries`, (t) => {
    const script = fileURLToPath(new URL('./heap.ts', import.meta.url))
    const out = execFileSync(process.execPath, ['--expose-gc', script, kind], { encoding: 'utf8', timeout: 300_000 })
    const found = JSON.parse(out) as { perTurn: number; framesPerTurn: number; arrived: number } | null
    if (found === null) return t.skip('io_uring is not allowed here')
    assert.equal(found.arrived, 1)
    // Addresses that a turn gives to the kernel are boxed: some tens of bytes, whatever it carries. The smallest object for each frame were 12 more.
    assert.ok(found.framesPerTurn > least, `${found.framesPerTurn} frames in a turn`)
    assert.ok(found.perTurn < 150, `${found.perTurn} bytes for each turn of ${found.framesPerTurn} frames`)
  })
