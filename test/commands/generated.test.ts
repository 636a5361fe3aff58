/** What is generated is as its source says. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')
const load = (path: string): Promise<Record<string, () => Promise<string>>> => import(`../../scripts/${path}`)

test('oclif.manifest.json is what the commands say (npm run generate)', async () => {
  const { manifestOf } = await load('manifest.mjs')
  assert.deepEqual(JSON.parse(read('oclif.manifest.json')), JSON.parse(await manifestOf!()))
})

test('docs/errors.md is what the catalogue says (npm run generate)', async () => {
  const { errorsPage } = await load('errors-doc.mjs')
  assert.equal(read('docs/errors.md'), await errorsPage!())
})

test('every error says what can be done', () => {
  const rows = read('docs/errors.md')
    .split('\n')
    .filter((l) => l.startsWith('| `'))
    .map((l) => l.split(' | '))
  assert.ok(rows.length > 50)
  assert.deepEqual(
    rows.filter((r) => (r.at(-1) as string).replace(/\|$/, '').trim() === '').map((r) => r[0]),
    [],
  )
})
