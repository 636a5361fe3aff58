import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

test('a million frames allocate nothing', () => {
  const script = fileURLToPath(new URL('./heap.ts', import.meta.url))
  const out = execFileSync(process.execPath, ['--expose-gc', script], { encoding: 'utf8', timeout: 120_000 })
  const paths = JSON.parse(out) as Record<string, { bytes: number }>
  // The smallest object is 12 bytes; what remains below one is the compiler's and the collector's own.
  for (const [path, { bytes }] of Object.entries(paths)) assert.ok(bytes < 1, `${path}: ${bytes} bytes for each frame`)
})
