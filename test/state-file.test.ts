import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { Records } from '../src/plugins/cni/records.ts'
import { Traces } from '../src/plugins/cni/traces.ts'
import { readState, writeState } from '../src/state-file.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'noid-test-state-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

test('what was written is read, replaced as a whole, its owner’s alone; nothing stays aside', () => {
  const file = join(dir, 'a.json')
  writeState(file, { n: 1, long: 'x'.repeat(1000) })
  writeState(file, { n: 2 })
  assert.deepEqual(readState(file), { n: 2 })
  assert.equal(statSync(file).mode & 0o777, 0o600)
  assert.deepEqual(readdirSync(dir), ['a.json'])
})

test('who is killed while he writes leaves the old text', () => {
  const file = join(dir, 'a.json')
  writeState(file, { n: 1 })
  writeFileSync(`${file}.new`, '{"n": ')
  assert.deepEqual(readState(file), { n: 1 })
  writeState(file, { n: 2 })
  assert.deepEqual(readState(file), { n: 2 })
})

test('none, and a torn one, are none', () => {
  assert.equal(readState(join(dir, 'none.json')), undefined)
  writeFileSync(join(dir, 'torn.json'), '{"n": ')
  assert.equal(readState(join(dir, 'torn.json')), undefined)
})

test('the CNI backend begins beside files that are torn', () => {
  mkdirSync(join(dir, 'attachments'))
  for (const f of ['made.json', 'attachments/a.json']) writeFileSync(join(dir, f), '')
  assert.doesNotThrow(() => new Traces(dir))
  assert.deepEqual(new Records(dir).all(), [])
})
