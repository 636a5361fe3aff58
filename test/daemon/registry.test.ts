import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { NoidError } from '../../src/errors.ts'
import type { BackendContext, BackendDescriptor } from '../../src/plugins/contract.ts'
import { Registry, type Source } from '../../src/plugins/registry.ts'
import { backendSources } from '../../src/plugins/sources.ts'
import { fakeBackend, World } from './fakes.ts'

const context = (): BackendContext => ({ runDir: '', stateDir: '', privileged: false, log: () => {}, notify: () => {} })
const source = (from: string, ...result: unknown[]): Source => ({ from, backends: async () => result })

function setup(t: { after(fn: () => void): void }): (name: string) => BackendDescriptor {
  const dir = mkdtempSync(join(tmpdir(), 'noid-registry-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return (name) => fakeBackend(new World(dir), name)
}

test('hooks that throw, hang or talk nonsense are named and take nobody else down', async (t) => {
  const fake = setup(t)
  const good = fake('good')
  const r = await Registry.collect(
    [
      source('noid', good),
      { from: 'thrower', backends: () => Promise.reject(new Error('boom\nat line 1')) },
      { from: 'hanger', backends: () => new Promise(() => {}) },
      source('nothing', undefined),
      source('thief', { ...fake('good'), summary: 'not the first' }),
      source('future', { ...fake('future'), apiVersion: 2 }),
      source('name', { ...fake('x'), name: 'Not A Name' }),
      source('nics', { ...fake('nics'), provides: ['tap', 'carrier-pigeon'] }),
      source('caps', { ...fake('caps'), capabilities: { addressing: 'noid' } }),
      source('mixed', { ...fake('noload'), load: 1 }, fake('fine')),
    ],
    context,
    100,
  )
  assert.deepEqual(
    r.descriptors().map((d) => d.name),
    ['good', 'fine'],
  )
  assert.equal(r.descriptor('good').summary, 'files')
  const told = new Map(r.problems.map((p) => [p.from, p.what]))
  assert.deepEqual([...told.keys()].sort(), [
    'caps',
    'future',
    'hanger',
    'mixed',
    'name',
    'nics',
    'nothing',
    'thief',
    'thrower',
  ])
  assert.equal(told.get('thrower'), 'its hook failed: boom')
  assert.match(told.get('hanger') as string, /no answer/)
  assert.match(told.get('thief') as string, /exists already/)
  assert.match(told.get('future') as string, /version 2/)
  assert.throws(
    () => r.descriptor('none'),
    (e) => e instanceof NoidError && e.code === 'BACKEND_UNKNOWN' && e.hint === 'there are: good, fine',
  )
})

test('a backend is loaded once, when it is first used; a load that fails is told and tried again', async (t) => {
  const fake = setup(t)
  let loads = 0
  const lazy: BackendDescriptor = {
    ...fake('lazy'),
    load: () => {
      loads += 1
      return loads === 1 ? Promise.reject(new Error('no such module')) : fake('lazy').load()
    },
  }
  const r = await Registry.collect([source('noid', lazy)], context)
  assert.equal(loads, 0)
  await assert.rejects(
    r.backend('lazy'),
    (e) => e instanceof NoidError && e.code === 'BACKEND_UNAVAILABLE' && /no such module/.test(e.message),
  )
  const [a, b] = await Promise.all([r.backend('lazy'), r.backend('lazy')])
  assert.equal(a, b)
  assert.equal(loads, 2)
  await r.close()
})

test('a backend that cannot be made is told and tried again, too', async (t) => {
  const fake = setup(t)
  let full = true
  const r = await Registry.collect([source('noid', fake('files'))], () => {
    if (full) throw new Error('ENOSPC: no space left on device, mkdir')
    return context()
  })
  await assert.rejects(
    r.backend('files'),
    (e) => e instanceof NoidError && e.code === 'BACKEND_UNAVAILABLE' && /no space left/.test(e.message),
  )
  full = false
  await r.backend('files')
  await r.close()
})

test('an installed oclif plug-in gives its backends through the hook noid:backends; a broken one is named', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-plugins-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  const plugin = (name: string, hook: string): object => {
    const root = join(dir, name)
    mkdirSync(root)
    const oclif = { hooks: { 'noid:backends': './hook.js' } }
    writeFileSync(join(root, 'package.json'), JSON.stringify({ name, version: '1.0.0', type: 'module', oclif }))
    writeFileSync(join(root, 'hook.js'), hook)
    return { type: 'link', name, root }
  }
  const backend = `{ name: 'pigeon', apiVersion: 1, summary: 'RFC 1149', provides: ['tap'], load: async () => () => ({}),
    capabilities: { addressing: 'noid', privileges: [], publish: false, dns: false, isolation: false, ipv6: false } }`
  const plugins = [
    plugin('noid-pigeon', `export default async () => [${backend}]`),
    plugin('noid-broken', `export default async () => { throw new Error('out of birds') }`),
  ]
  writeFileSync(join(dir, 'package.json'), JSON.stringify({ oclif: { schema: 1, plugins } }))
  const before = process.env.NOID_DATA_DIR
  process.env.NOID_DATA_DIR = dir
  t.after(() => {
    if (before === undefined) delete process.env.NOID_DATA_DIR
    else process.env.NOID_DATA_DIR = before
  })
  const r = await Registry.collect(await backendSources(), context)
  const names = r.descriptors().map((d) => d.name)
  assert.equal(names[0], 'userspace')
  assert.equal(names.at(-1), 'pigeon')
  assert.deepEqual(r.problems, [{ from: 'noid-broken', what: 'its hook failed: out of birds' }])
})
